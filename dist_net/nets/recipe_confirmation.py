"""Ask the user at the terminal whether downloaded Python code may run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

from dist_net.command_line import TRUST
from dist_net.errors import UntrustedRecipeError
from dist_net.nets.recipes.trusted_recipes import is_trusted, trust
from dist_net.nets.trained_model import recipe_code_digests
from dist_net.printable import printable


def confirm_recipe(model: str | Path, is_confirmed: bool) -> None:
    """Have the user confirm the Python files that loading ``model`` executes, if it is a run."""
    path = Path(model)
    if digests := recipe_code_digests(path):
        directory = path if path.is_dir() else path.parent
        confirm_code(f"the recipe of {path}", directory, digests, is_confirmed)


def confirm_code(
    what: str, directory: Path, digests: Mapping[str, str], is_confirmed: bool
) -> None:
    """Have the user confirm Python files by name and SHA-256, and record the answer.

    ``is_confirmed``: --trust-recipe was given. Raise UntrustedRecipeError if the user refuses, or
    stdin is not a terminal.
    """
    if is_trusted(digests):
        return
    if not is_confirmed:
        files = [f"{directory / name}: SHA-256 {digest}" for name, digest in digests.items()]
        lines = [printable(line) for line in files]
        if sys.stdin is None or not sys.stdin.isatty():
            raise UntrustedRecipeError(
                f"{what} is Python code that would run on this host ({'; '.join(lines)}), and "
                f"stdin is not a terminal; if you trust its author, pass {TRUST}"
            )
        print(f"{what} is Python code:", *lines, sep="\n    ", file=sys.stderr)
        print("Run it on this host? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UntrustedRecipeError(f"{what} is not trusted; nothing was run")
    trust(digests)
