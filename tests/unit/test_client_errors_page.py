"""The table of errors in docs/serving.md names what a client raises, with the status codes."""

import re
from pathlib import Path

import pytest

from dist_net import errors
from dist_net.serving.client.gateway_connection import error_of

replies = pytest.importorskip("dist_net.serving.http.replies", reason="needs the extra `web`")
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ROWS = re.findall(r"^\| (`\w+Error`[^|]*)\| *(\d*) *\|", PAGE.read_text(), re.MULTILINE)
CODES = {re.findall(r"`(\w+)`", names)[0]: int(code) for names, code in ROWS if code}


def test_a_client_raises_the_error_of_each_code_in_the_table() -> None:
    for name, code in CODES.items():
        raised = error_of(code, b'{"error": "because"}')
        assert (type(raised).__name__, str(raised)) == (name, "because")


def test_the_table_has_every_code_of_a_result_and_of_an_error() -> None:
    sent = {*replies.CODE_OF_STATUS.values(), *(code for _, code in replies.CODE_OF_ERROR), 401}
    assert sent - {200} == set(CODES.values())


def test_every_error_in_the_table_exists() -> None:
    names = [name for names, _ in ROWS for name in re.findall(r"`(\w+)`", names)]
    assert all(hasattr(errors, name) for name in names)
