"""The table of errors in docs/serving.md names what a client raises, with the status codes."""

import re
from pathlib import Path

import pytest

from dist_net import errors
from dist_net.serving.client.client import ERRORS

replies = pytest.importorskip("dist_net.serving.http.replies", reason="needs the extra `web`")
PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
ROWS = re.findall(r"^\| (`\w+Error`[^|]*)\| *(\d*) *\|", PAGE.read_text(), re.MULTILINE)
CODES = {name: code for names, code in ROWS for name in re.findall(r"`(\w+)`", names)}


def test_the_table_names_every_error_of_a_reply() -> None:
    kinds = {kind.__name__ for kind in ERRORS.values()}
    assert kinds | {"PoolUnavailableError", "NoAnswerError", "ProtocolError"} <= CODES.keys()
    assert all(hasattr(errors, name) for name in CODES)


def test_the_codes_are_those_of_http() -> None:
    by_error = {kind.__name__: str(replies.CODE_OF_STATUS[each]) for each, kind in ERRORS.items()}
    by_error["PoolUnavailableError"] = str(replies.code_of_error(errors.PoolUnavailableError("")))
    for kind in (errors.RequestTooLargeError, errors.QuotaExceededError):  # raised before a reply
        by_error[kind.__name__] = str(replies.code_of_error(kind("")))
    assert {name: code for name, code in CODES.items() if code} == {
        name: code for name, code in by_error.items() if name != "RequestCancelledError"
    }
