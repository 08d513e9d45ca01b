"""The record of the recipes that this user trusts: a line for each file, with its SHA-256.

A recipe in a run directory is Python code. It runs without confirmation if training on this host
wrote it, or if the user confirmed it before. The record is a file in the user's data directory; if
the user deletes a line, the recipe must be confirmed again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import platformdirs

from dist_net.nets.recipes.recipe_files import RECIPE_FILE

logger = logging.getLogger(__name__)


def record_path() -> Path:
    """Return the record's path. Each line of the file is a JSON array ``[NAME, SHA-256]``."""
    return platformdirs.user_data_path("dist-net", appauthor=False) / "trusted-recipes"


def is_trusted(digests: Mapping[str, str]) -> bool:
    """Return whether the record has each of these files (SHA-256 by name), and one is a recipe."""
    try:
        known = {*record_path().read_text(encoding="utf-8").splitlines()}
    except (OSError, ValueError):
        return False
    return RECIPE_FILE in digests and known.issuperset(_lines(digests))


def trust(digests: Mapping[str, str]) -> None:
    """Add files to the record. Log a warning if it cannot be written."""
    if is_trusted(digests):
        return
    path = record_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in _lines(digests)))
    except OSError as error:
        logger.warning("trusted_recipe_not_recorded path=%s reason=%s", path, error.strerror)


def _lines(digests: Mapping[str, str]) -> list[str]:
    return [json.dumps(item) for item in digests.items()]
