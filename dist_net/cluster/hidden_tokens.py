"""Tokens stay off command lines, which every user of a host can read while a process runs.

A command takes its token from stdin, or from a file. Where a word of a command line holds one
nevertheless, a process that is started reads the word from a pipe that it inherits.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dist_net.errors import TokenError
from dist_net.wire.token import LONGEST_TOKEN, holds_token

_PIPED = re.compile(r"@/dev/fd/(\d+)")


def add_token_arguments(parser: argparse.ArgumentParser, printed_by: str) -> None:
    """Declare where a command takes its token from."""
    parser.add_argument(
        "token",
        metavar="TOKEN",
        nargs="?",
        help=f"as {printed_by} prints it (default: the first line of stdin)",
    )
    parser.add_argument("--token-file", type=Path, metavar="FILE", help="read TOKEN from this file")


def token_given(arguments: argparse.Namespace) -> str:
    """Return the token of a command line, of its --token-file, or else of stdin.

    Raises TokenError if there is none, or two.
    """
    if arguments.token and arguments.token_file:
        raise TokenError("both TOKEN and --token-file were given; expected one of them")
    if arguments.token:
        return str(arguments.token)
    try:
        if arguments.token_file:
            with arguments.token_file.open(encoding="utf-8") as file:
                text = str(file.readline(LONGEST_TOKEN + 2))
        else:
            text = _first_line_of_stdin()
    except (OSError, ValueError) as error:
        raise TokenError(f"the token cannot be read ({error}); expected a file of text") from error
    if not text.strip():
        raise TokenError(
            f"no token in {arguments.token_file or 'stdin'}; expected the line that was printed: "
            f"echo TOKEN | dist-net ..., or --token-file FILE"
        )
    return text.strip()


def _first_line_of_stdin() -> str:
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        print("Token: ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline(LONGEST_TOKEN + 2)
    text = sys.stdin.readline(LONGEST_TOKEN + 2)
    if sys.stderr.isatty():  # the user is there, and may be asked about a recipe
        with suppress(OSError):
            sys.stdin = Path("/dev/tty").open(encoding="utf-8")  # noqa: SIM115
    return text


def hide_tokens(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return words to start a process with, and the descriptors that it must inherit.

    Each word with a token waits in a pipe, and ``reveal_tokens`` puts it back.
    """
    hidden, descriptors = [*words], []
    for place, word in enumerate(words):
        if holds_token(word):
            reading, writing = os.pipe()
            with os.fdopen(writing, "w") as pipe:
                pipe.write(word)
            hidden[place] = f"@/dev/fd/{reading}"
            descriptors.append(reading)
    return hidden, descriptors


def reveal_tokens(words: Sequence[str]) -> list[str]:
    """Return the words of this process with those that ``hide_tokens`` has replaced."""
    return [_revealed(word) for word in words]


def _revealed(word: str) -> str:
    found = _PIPED.fullmatch(word)
    if found is None:
        return word
    with os.fdopen(int(found[1])) as pipe:
        return pipe.read()


def own_words() -> list[str]:
    """Return the words of this process's command line, which holds no token from here on.

    If it does, the process starts anew in its own place: same id, other words.
    """
    words, descriptors = hide_tokens(sys.orig_argv[1:])
    if descriptors:
        for each in descriptors:
            os.set_inheritable(each, True)
        os.execv(sys.executable, [sys.orig_argv[0], *words])
    return reveal_tokens(sys.argv[1:])
