"""Tokens are kept off command lines, which every user of a host can read while a process runs.

Commands read their token from stdin or from a file. If a word of a command line holds a token, the
started process reads that word from an inherited pipe instead.
"""

import argparse
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dist_net.errors import TokenError
from dist_net.wire.token import MAX_TOKEN_LENGTH, JoinToken, is_token

_PIPED = re.compile(r"@/dev/fd/(\d+)")


def add_token_arguments(
    parser: argparse.ArgumentParser, printed_by: str
) -> argparse._MutuallyExclusiveGroup:
    """Declare a command's token. Options added to the returned group exclude it."""
    group = parser.add_mutually_exclusive_group()
    text = f"as {printed_by} prints it (default: the first line of stdin)"
    group.add_argument("token", metavar="TOKEN", nargs="?", help=text)
    group.add_argument("--token-file", type=Path, metavar="FILE", help="read it from this file")
    return group


def token_given(arguments: argparse.Namespace, *kinds: str) -> JoinToken:
    """Return the token of a command line, its --token-file, or else stdin; raise TokenError."""
    text = arguments.token
    if text is None:
        try:
            text = _first_line(arguments.token_file)
        except (OSError, ValueError) as error:
            raise TokenError(f"the token cannot be read: {error}; expected a text file") from error
    if not text:
        raise TokenError(
            f"no token in {arguments.token_file or 'stdin'}; expected the printed line, "
            f"echo TOKEN | dist-net ..., or --token-file FILE"
        )
    token = JoinToken.parse(text)
    token.require_kind(*kinds)
    return token


def _first_line(path: Path | None) -> str:
    if path is not None:
        with path.open(encoding="utf-8") as file:
            return file.readline(MAX_TOKEN_LENGTH + 2).strip()
    if sys.stdin is None:
        return ""
    if sys.stdin.isatty():
        print("Token: ", end="", file=sys.stderr, flush=True)
    line = sys.stdin.readline(MAX_TOKEN_LENGTH + 2).strip()
    if not sys.stdin.isatty() and sys.stderr.isatty():  # for the question about a recipe
        with suppress(OSError):
            sys.stdin = Path("/dev/tty").open(encoding="utf-8")  # noqa: SIM115
    return line


def hide_tokens(words: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the words with each token moved to a pipe, and the pipes, which must be inherited."""
    hidden, descriptors = [*words], []
    for place, word in enumerate(words):
        if any(map(is_token, word.split("="))):  # or NAME=TOKEN
            reading, writing = os.pipe()
            with os.fdopen(writing, "w") as pipe:
                pipe.write(word)
            hidden[place] = f"@/dev/fd/{reading}"
            descriptors.append(reading)
    return hidden, descriptors


def reveal_tokens(words: Sequence[str]) -> list[str]:
    """Return the words that ``hide_tokens`` was given, from its result."""
    revealed = [*words]
    for place, word in enumerate(words):
        if found := _PIPED.fullmatch(word):
            with os.fdopen(int(found[1])) as pipe:
                revealed[place] = pipe.read()
    return revealed


def own_words() -> list[str]:
    """Return this process's arguments; if they show a token, ``exec`` with a hidden token first."""
    words, descriptors = hide_tokens(sys.orig_argv[1:])
    if descriptors:
        for each in descriptors:
            os.set_inheritable(each, True)
        os.execv(sys.executable, [sys.orig_argv[0], *words])
    return reveal_tokens(sys.argv[1:])
