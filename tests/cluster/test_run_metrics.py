"""A run's metrics over HTTP, on this host and beyond it."""

import argparse
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from dist_net.cli.served_run import served_metrics
from dist_net.errors import AddressError, InsecureAddressError, SettingError
from dist_net.processes.terminal import plain_console
from naming import naming

TOKEN = "0123456789abcdef"


def asked_for(address: str | None, file: Path | None = None) -> Any:
    arguments = argparse.Namespace(metrics=address, metrics_token_file=file)
    return served_metrics(arguments, plain_console())


def answer_of(url: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_are_answered_and_the_port_is_free_again_later(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with asked_for("127.0.0.1:0"):
        url = capsys.readouterr().err.removeprefix("metrics: ").strip()
        assert answer_of(url) == (200, "")
        assert answer_of(url, Host="evil.example")[0] == 403
        address = url.split("/")[2]
        with (
            pytest.raises(AddressError, match=naming("already in use")),
            asked_for(address),
        ):
            pass
    with asked_for(address):
        pass


def test_beyond_this_host_a_token_is_needed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with (
        pytest.raises(InsecureAddressError, match=naming("--metrics-token-file")),
        asked_for("0.0.0.0:0"),
    ):
        pass
    file = tmp_path / "token"
    file.write_text(TOKEN)
    with asked_for("0.0.0.0:0", file):
        url = capsys.readouterr().err.removeprefix("metrics: ").strip()
        url = url.replace("0.0.0.0", "127.0.0.1")
        assert answer_of(url)[0] == 401
        assert answer_of(url, Authorization=f"Bearer {TOKEN}")[0] == 200


def test_a_token_without_an_address_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(SettingError, match=naming("--metrics-token-file", "--metrics HOST:PORT")),
        asked_for(None, tmp_path),
    ):
        pass
    with asked_for(None) as publish:
        assert publish is None
