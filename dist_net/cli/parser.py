"""A command line parser with errors of one line, which suggest what was probably meant."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NoReturn

from dist_net.errors import BadInputError
from dist_net.spelling import did_you_mean


class Parser(argparse.ArgumentParser):
    """A parser; those of its commands are of this class too."""

    def error(self, message: str) -> NoReturn:
        """Prints what was wrong and where help is, and ends the process."""
        self.exit(BadInputError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The namespace, and no words left over: the process ends if one is unknown.

        Unknown options are reported first, as a misspelt option may be the one that is missing.
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
        """The options that this parser itself has to know: those before a command."""
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


def count_from(least: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number, ``least`` or more."""

    def count(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is below {least}")
        return number

    return count


def number_above_zero(text: str) -> float:
    """The type of an argument that is a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no finite number above 0")
    return number


def _hint(word: str, known: Iterable[str]) -> str:
    guess = did_you_mean(word, known)
    return f" ({guess})" if guess else ""
