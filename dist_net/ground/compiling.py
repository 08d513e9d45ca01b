"""Compiling loops with numba, and caching their code. Needs the extra ``fast``.

A function is compiled for one signature, or read from numba's cache on disk, by the thread that
needs it. In that cache, functions made for several constants or signatures share one index, so
processes that fill it at the same time may get each other's code; and a change is noticed only in
the function's own file. So there is a cache directory for each signature and each state of the
sources: this file, and the files in the function's own folder. A compiled function may call only
functions in that folder. The first one that is compiled in a new state of the sources, as after an
upgrade, removes the directories of the states before.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    """Compiles for exactly these types, without the GIL; division by zero returns inf or nan."""
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
    """Let numba keep the code of a file apart for each signature and state of the sources."""
    sources = [Path(__file__), *sorted(file.parent.glob("*.py"))]
    of_state = file.parent / "__pycache__" / f"compiled-{_digest(*map(Path.read_bytes, sources))}"
    if not of_state.exists():
        logger.info("compiling_loops directory=%s", of_state)
        for another in {*of_state.parent.glob("compiled-*")} - {of_state}:
            shutil.rmtree(another, ignore_errors=True)
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(of_state / _digest(str(signature).encode()))
    try:
        yield
    finally:
        numba.config.CACHE_DIR = before


def _digest(*contents: bytes) -> str:
    return hashlib.sha256(b"\0".join(contents)).hexdigest()[:16]
