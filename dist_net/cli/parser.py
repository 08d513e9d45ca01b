"""The argument parser, with suggestions for misspelt words; the option --json, and its output."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

from dist_net.errors import BadInputError
from dist_net.ground.spelling import did_you_mean


class Parser(argparse.ArgumentParser):
    """The parser of the command line and of each of its commands."""

    def error(self, message: str) -> NoReturn:
        self.exit(BadInputError.exit_code, f"{self.prog}: {message}; see {self.prog} --help\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Return the namespace and an empty list; exits if an argument is unknown.

        Unknown options are reported first: a misspelt option may be the missing option.
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
        """Yield the long options before the command, which this parser itself must know."""
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


def add_json_argument(parser: argparse.ArgumentParser, what: str = "the result as one") -> None:
    """Add --json, with which ``main`` leaves stdout to ``print_json``."""
    text = f"print {what} JSON object; all else goes to stderr"
    parser.add_argument("--json", action="store_true", help=text)


def print_json(result: object) -> None:
    """Print a line of JSON to the process's stdout, whatever ``sys.stdout`` is; NaN is null."""
    standard = json.loads(json.dumps(result), parse_constant=lambda _: None)
    print(json.dumps(standard), file=sys.__stdout__, flush=True)
