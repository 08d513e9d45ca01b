"""Command lines: options of several commands, their types, and commands to copy into a shell."""

import argparse
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dist_net.errors import MissingExtraError

TRUST = "--trust-recipe"
AUTO = "auto"

Kind = Callable[[str], Any]
Option = tuple[str, Kind, str, str] | tuple[str, Kind, str, str, float]
"""See ``add_options``."""


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option of every command that may execute a run's own recipe."""
    parser.add_argument(
        TRUST, action="store_true", help="run the Python recipe of a downloaded run without asking"
    )


def add_options(group: argparse._ActionsContainer, *options: Option) -> None:
    """Add options by name, type, metavariable, help and perhaps a default, which the help names."""
    for name, kind, metavar, text, *default in options:
        text += "".join(f" (default: {f'{each:,}'.removesuffix('.0')})" for each in default)
        value = next(iter(default), None)
        group.add_argument(name, type=kind, metavar=metavar, help=text, default=value)


def count_from(least: int, most: float = math.inf) -> Callable[[str], int]:
    """Return an argument type for integers from ``least`` up to ``most``."""

    def count(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"{number} is below {least}")
        if number > most:
            raise argparse.ArgumentTypeError(f"{number} is above {most}")
        return number

    return count


def count_or_auto(least: int, most: float = math.inf) -> Callable[[str], int | None]:
    """Return an argument type as ``count_from`` does, that also takes ``auto``, which is None."""
    return lambda text: None if text == AUTO else count_from(least, most)(text)


def number_or_auto(text: str) -> int | str:
    return text if text == AUTO else int(text)


def number_above_zero(text: str) -> float:
    """Argument type: a finite number above 0."""
    number = float(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a finite number above 0")
    return number


def seconds(text: str) -> float:
    """Argument type: a time limit above 0; infinity is none."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return float(text)


def command_line(*words: object) -> str:
    """Return ``dist-net WORDS...``, quoted, with the path of ``dist-net`` unless it is on PATH."""
    return f"{_program()} {shlex.join(map(str, words))}"


def joining_command(*words: object, address: str, keys: Path | None) -> str:
    """Return ``dist-net WORDS... --connect ADDRESS``, with the keys for a TCP address.

    ``keys`` is the server's key directory, which a worker on the server's host may use.
    """
    needs_keys = keys is not None and address.startswith("tcp://")
    return command_line(*words, "--connect", address, *(("--keys", keys) if needs_keys else ()))


def install_command(extra: str) -> str:
    """Return the command that installs an extra: of this checkout, or of the installed package."""
    if (Path(__file__).parents[2] / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]'"
    from importlib.metadata import packages_distributions  # late: 15 ms of each process's start

    (distribution,) = set(packages_distributions()["dist_net"])
    return f"pip install '{distribution}[{extra}]'"


@contextmanager
def importing(extra: str, purpose: str) -> Iterator[None]:
    """Raise MissingExtraError, with the remedy, if the packages of an extra cannot be imported."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"{purpose} needs a package that cannot be imported ({error}); install it with: "
            f"{install_command(extra)}"
        ) from error


def _program() -> str:
    """Return the command that starts ``dist-net`` in the user's shell."""
    script = Path(sys.executable).with_name("dist-net")
    if not script.exists():
        return shlex.join((sys.executable, "-m", "dist_net"))
    if shutil.which("dist-net") == str(script):
        return "dist-net"
    return shlex.quote(min(os.path.relpath(script), str(script), key=len))
