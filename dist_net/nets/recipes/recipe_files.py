"""Run a recipe's Python files from verified bytes, and record which of them the user trusts.

Python's import would read a file again after the check, or run cached bytecode, and two recipes
that each import a ``net.py`` would share one module.

A recipe in a run directory runs without confirmation if training on this host wrote it, or if the
user confirmed it before. Deleting a line of the record revokes the confirmation.
"""

import builtins
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.abc import SourceLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from traceback import walk_tb
from types import ModuleType
from typing import Any

import platformdirs

from dist_net.errors import RecipeChangedError, RecipeError

RECIPE_FILE = "recipe.py"
"""The name of the recipe in a run directory; files that it imports keep their names."""

MODULE_PREFIX = "dist_net_recipe_"

Read = Callable[[Path], bytes | None]
"""Returns the content of a file that may run; None if it does not exist."""

logger = logging.getLogger(__name__)


class RecipeFiles:
    """A recipe's file and the modules that it imports from its folder, each run once.

    ``path`` is a copy of ``original``, which becomes ``__file__``, so that the recipe finds data
    beside it. ``contents`` maps the names of executed files to contents; lazy imports add to it.
    """

    def __init__(self, path: Path, original: Path, read: Read) -> None:
        self.contents: dict[str, bytes] = {}
        self._path = path
        self._original = original
        self._read = read
        self._modules: dict[str, ModuleType] = {}
        to_stderr = partial(print, file=sys.stderr)  # stdout is for a command's result
        self._builtins = {**vars(builtins), "__import__": self._import, "print": to_stderr}

    def run(self) -> dict[str, Any]:
        """Run the recipe's file and return its variables; raise the file's errors."""
        source = self._read(self._path)
        if source is None:
            raise RecipeError("no such file")
        return vars(self._run(self._original.stem, RECIPE_FILE, self._path, self._original, source))

    def _import(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """``__import__`` in a recipe's files, which searches the recipe's folder first."""
        if level == 0 and "." not in name:
            if name in self._modules:
                return self._modules[name]
            path = self._path.with_name(f"{name}.py")
            source = self._read(path)
            if source is not None:
                if path.name == RECIPE_FILE:
                    raise RecipeError(
                        f"{self._original.name} imports {path}, but {RECIPE_FILE} is the recipe's "
                        f"own name in a run directory; rename the imported file"
                    )
                original = self._original.with_name(path.name)
                return self._run(name, path.name, path, original, source)
        return builtins.__import__(name, globals, locals, fromlist or (), level)

    def _run(self, name: str, kept: str, path: Path, original: Path, source: bytes) -> ModuleType:
        unique = f"{MODULE_PREFIX}{sha256(source)[:12]}_{name}"
        spec = spec_from_file_location(unique, original, loader=_CheckedSource(path, source))
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        vars(module)["__builtins__"] = self._builtins
        self.contents[kept] = source
        self._modules[name] = sys.modules[unique] = module
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del self._modules[name]
            raise
        return module


class _CheckedSource(SourceLoader):
    """Loads modules from source code in memory; reads and writes no bytecode."""

    def __init__(self, path: Path, source: bytes) -> None:
        self._path = path
        self._source = source

    def get_filename(self, fullname: str) -> str:
        return str(self._path)

    def get_data(self, path: str | bytes) -> bytes:
        return self._source


def read_any(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def reader_of(recipe: Path, digests: Mapping[str, str]) -> Read:
    """Return a function that reads ``recipe`` and files of its folder with these digests.

    Without digests it reads every file. It raises RecipeChangedError for a missing or changed file.
    """

    def read(path: Path) -> bytes | None:
        name = RECIPE_FILE if path == recipe else path.name
        if name not in digests and name != RECIPE_FILE:
            return None if digests else read_any(path)
        content = read_any(path)
        if content is None or (digests and digests.get(name) != sha256(content)):
            found = "is missing" if content is None else "has changed"
            raise RecipeChangedError(
                f"the recipe's file {path} {found}; expected the file used in training. Restore it"
            )
        return content

    return read


def digests_of(files: Mapping[str, bytes]) -> dict[str, str]:
    """Return the SHA-256 of each file by its name, in hexadecimal, in the names' order."""
    return {name: sha256(content) for name, content in sorted(files.items())}


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def place_in_recipe(error: BaseException) -> str:
    """Return ``FILE:LINE`` of the recipe's file that raised an error; "" if none did."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    places = [
        f"{frame.f_code.co_filename}:{line}"
        for frame, line in walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith(MODULE_PREFIX)
    ]
    return places[-1] if places else ""


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
