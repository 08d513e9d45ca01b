"""Where a command takes its token from, and that no command line shows it."""

import argparse
import io
import os
from pathlib import Path

import pytest

from dist_net.errors import TokenError
from dist_net.processes.token_arguments import (
    add_token_arguments,
    hide_tokens,
    reveal_tokens,
    token_given,
)
from dist_net.wire.token import MAX_TOKEN_LENGTH, TRAINING, JoinToken
from naming import naming

TOKEN = JoinToken(TRAINING, "00ad5eed", 1, ("tcp://192.0.2.1:5",), bytes(32), bytes(32)).text


class Terminal(io.StringIO):
    """A keyboard at which the user has pasted something."""

    def isatty(self) -> bool:
        return True


def given(*words: str) -> str:
    parser = argparse.ArgumentParser()
    add_token_arguments(parser, "a server")
    return token_given(parser.parse_args(words), TRAINING).text


def test_a_token_comes_from_stdin_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert given("--token-file", str(tmp_path / "token")) == TOKEN
    assert given(TOKEN) == TOKEN
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{TOKEN}\nnext"))
    assert given() == TOKEN
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stdin", Terminal(f" {TOKEN} \n"))
    assert given() == TOKEN
    assert "Token" in capsys.readouterr().err


@pytest.mark.parametrize("stdin", [None, io.StringIO(""), io.StringIO("\n\n")])
def test_no_token_is_an_error(stdin: io.StringIO | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", stdin)
    with pytest.raises(TokenError, match=naming("stdin", "--token-file")):
        given()


def test_files_that_hold_no_token_are_errors(tmp_path: Path) -> None:
    (tmp_path / "huge").write_text("x" * 10 * MAX_TOKEN_LENGTH)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(TokenError, match=str(MAX_TOKEN_LENGTH + 2)):
        given("--token-file", str(tmp_path / "huge"))
    for name, cause in (("none", "No such file"), ("bytes", "0xff"), (".", "Is a directory")):
        with pytest.raises(TokenError, match=naming(cause)):
            given("--token-file", str(tmp_path / name))
    with pytest.raises(SystemExit):
        given(TOKEN, "--token-file", str(tmp_path / "huge"))


def test_after_a_token_from_a_pipe_questions_are_asked_at_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(TOKEN))
    monkeypatch.setattr("sys.stderr", Terminal())
    keyboard = Terminal("y\n")
    monkeypatch.setattr(Path, "open", lambda path, **_: {"/dev/tty": keyboard}[str(path)])
    assert given() == TOKEN
    monkeypatch.undo()
    assert keyboard.readline() == "y\n"


@pytest.mark.parametrize("word", [TOKEN, f"live={TOKEN}", f"live={TOKEN},labels=names"])
def test_a_word_with_a_token_travels_through_a_pipe(word: str) -> None:
    words = ["serve", word, "dn1", "--workers", "2"]
    hidden, descriptors = hide_tokens(words)
    assert TOKEN not in " ".join(hidden)
    assert [a for a, b in zip(hidden, words, strict=True) if a == b] == [*words[:1], *words[2:]]
    assert reveal_tokens(hidden) == words
    for each in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(each)


def test_other_words_stay_as_they_are() -> None:
    words = ["predict", "runs/dn1", "@home.png", "--top=3"]
    assert hide_tokens(words) == (words, [])
    assert reveal_tokens(words) == words
