"""The kernels that a process computes with, since they decide how results are rounded.

OpenBLAS, NumPy and numba choose kernels for the processor, when they are loaded. With the bits
``portable``, they use those of Haswell (2013), which every x86-64 processor since then has; the
results are then the same on all of them. Only the environment of a new process makes the choice.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from threadpoolctl import threadpool_info

from dist_net.errors import SettingError

FAST, PORTABLE = BITS = "fast", "portable"
_ARCHITECTURE = "Haswell"
_ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {
        "OPENBLAS_CORETYPE": _ARCHITECTURE,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": "",  # those of the name
        # As NumPy up to 2.3 and from 2.4 on calls them; it ignores the names that it lacks.
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL "
        "AVX512_SPR X86_V4",
    }
)


def environment_of(bits: str) -> dict[str, str]:
    """Return the environment for a new process that computes with these bits."""
    return {**os.environ, **_ENVIRONMENT} if bits == PORTABLE else dict(os.environ)


def blas_libraries() -> list[str]:
    """Return the loaded BLAS libraries: names, versions and kernels."""
    return sorted(
        {
            f"{each['internal_api']} {each['version']}"
            + (f" ({each['architecture']})" if each.get("architecture") else "")
            for each in threadpool_info()
            if each["user_api"] == "blas"
        }
    )


def require_bits(bits: str) -> None:
    """Raise SettingError if this process does not compute with these bits."""
    found = blas_libraries()
    if bits == PORTABLE and not all(each.endswith(f"({_ARCHITECTURE})") for each in found):
        raise SettingError(
            f"--bits portable with {', '.join(found)}: expected OpenBLAS on an x86-64 processor, "
            f"as in NumPy's wheels, and a process that 'dist-net train' or 'join' has started"
        )


def restart_with(bits: str, words: Sequence[str]) -> None:
    """Replace this process by ``words`` of Python with these bits, unless it has them."""
    if bits == PORTABLE and os.environ.items() < environment_of(bits).items():
        os.execve(sys.executable, [sys.executable, *words], environment_of(bits))


def with_bits(digest: str, bits: str) -> str:
    """Return the shared facts of a run with its bits; see ``LoadedRecipe.digest``."""
    return f"{digest}; bits {PORTABLE}" if bits == PORTABLE else digest


def bits_in(digest: str) -> str:
    """Invert ``with_bits``."""
    return PORTABLE if digest.endswith(with_bits("", PORTABLE)) else FAST
