"""Command lines: an option that several commands take, and commands to be copied into a shell."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from pathlib import Path

TRUST = "--trust-recipe"


def add_trust_argument(parser: argparse.ArgumentParser) -> None:
    """Declares the option of every command that may run a run's own recipe."""
    parser.add_argument(
        TRUST, action="store_true", help="run the Python recipe of a downloaded run without asking"
    )


def command_line(*words: object) -> str:
    """``dist-net WORDS...``, quoted, and with the path to ``dist-net`` where a shell needs it."""
    return f"{_program()} {shlex.join(map(str, words))}"


def joining_command(*words: object, address: str, keys: Path | None) -> str:
    """``dist-net WORDS... --connect ADDRESS``, with the keys that a TCP address then asks for.

    ``keys`` is the server's key directory, which stands for a worker's own on the server's host.
    """
    needs_keys = keys is not None and address.startswith("tcp://")
    return command_line(*words, "--connect", address, *(("--keys", keys) if needs_keys else ()))


def _program() -> str:
    """What starts ``dist-net`` in the shell that started this process."""
    script = Path(sys.executable).with_name("dist-net")
    if not script.exists():
        return shlex.join((sys.executable, "-m", "dist_net"))
    if shutil.which("dist-net") == str(script):
        return "dist-net"
    return shlex.quote(min(os.path.relpath(script), str(script), key=len))
