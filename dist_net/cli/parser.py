"""A command line parser whose errors are one line, and say what was probably meant."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from dist_net.errors import BadInputError
from dist_net.spelling import did_you_mean


class Parser(argparse.ArgumentParser):
    """Its commands' parsers are of this class, too."""

    def error(self, message: str) -> NoReturn:
        """Says what was wrong and where help is, and ends the process."""
        self.exit(BadInputError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The namespace and nothing that is left; what is unknown ends the process.

        Unknown options are looked for first: what they stood for may be what else is missing.
        """
        for option in self._long_options_in(args):
            if not any(known.startswith(option) for known in self._option_string_actions):
                self._refuse([option])
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self._refuse(unknown)
        return parsed, unknown

    def _refuse(self, unknown: Sequence[str]) -> NoReturn:
        actions = self._option_string_actions.items()
        options = [option for option, action in actions if action.help != argparse.SUPPRESS]
        hint = _hint(unknown[0], options)
        self.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")

    def _long_options_in(self, words: Sequence[str]) -> Iterator[str]:
        """Those that are this parser's own: they come before a command."""
        for word in words:
            if word == "--" or (self._subparsers is not None and not word.startswith("-")):
                return
            if word.startswith("--"):
                yield word.partition("=")[0]

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            choices = list(action.choices)
            hint = _hint(value, choices) or f" (choose from {', '.join(choices)})"
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}{hint}")


def _hint(word: str, known: Iterable[str]) -> str:
    guess = did_you_mean(word, known)
    return f" ({guess})" if guess else ""
