"""Compile loops with numba, and cache the machine code. Needs the extra ``fast``.

Each function is compiled for one signature when its module is imported, or read from numba's cache
on disk. In one cache directory, numba keeps a single index for all signatures of a function, so
processes that fill it at the same time may read each other's code; and it notices changes only in
the function's own file. So each signature has its own directory in a directory for each state of
the sources: this file, and the files in the function's folder. A compiled function must not call
functions outside that folder. The first function compiled from new sources, as after an upgrade,
removes the directories of other states.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, cast

import numba
from numba import types

logger = logging.getLogger(__name__)

READ = types.Array(types.float32, 1, "C", readonly=True)
WRITTEN = types.Array(types.float32, 1, "C")
INTEGER = types.intp
REAL = types.float32
BOOLEAN = types.boolean

Loop = Callable[..., Any]


def jit(*arguments: Any, result: Any = types.void) -> Callable[[Loop], Loop]:
    """Compile the decorated function for arguments of exactly these types.

    ``result`` defaults to none. The code runs without the interpreter's lock, and a division by
    zero returns inf or nan.
    """
    signature = result(*arguments)

    def compiled(function: Loop) -> Loop:
        options = {"nogil": True, "error_model": "numpy"}
        try:
            with _own_cache(Path(function.__code__.co_filename), signature):
                return cast(Loop, numba.njit(signature, cache=True, **options)(function))
        except Exception as error:  # the cache cannot be written, or is damaged
            # An error in the function itself is raised again.
            logger.info("compiled_code_not_kept name=%s reason=%s", function.__name__, error)
            return cast(Loop, numba.njit(signature, **options)(function))

    return compiled


@contextmanager
def _own_cache(file: Path, signature: Any) -> Iterator[None]:
    """Make numba store code in the directory for this signature and state of the sources."""
    sources = [Path(__file__), *sorted(file.parent.glob("*.py"))]
    current = file.parent / "__pycache__" / f"compiled-{_digest(*map(Path.read_bytes, sources))}"
    if not current.exists():
        _announce()
        for other in {*current.parent.glob("compiled-*")} - {current}:
            shutil.rmtree(other, ignore_errors=True)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(current / _digest(str(signature).encode()))
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


@cache
def _announce() -> None:
    logger.warning("compiling_kernels: numba compiles them once for this release, in 10 to 20 s")


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
