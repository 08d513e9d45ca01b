"""The cores, the BLAS and the kernels of this process; kernels decide how results are rounded.

OpenBLAS, NumPy and numba choose kernels for the processor, when they are loaded. With the bits
``portable``, they use those of Haswell (2013), for AVX2 and FMA: the results are then the same on
all x86-64 processors that have both. Only the environment of a new process makes the choice.
"""

import math
import os
import socket
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_info

from dist_net.errors import SettingError
from dist_net.wire.messages import Equipment

FAST, PORTABLE = BITS = "fast", "portable"
_ARCHITECTURE = "Haswell"
_ROWS, _LARGEST = 32, 1024
_ENVIRONMENT = {
    "OPENBLAS_CORETYPE": _ARCHITECTURE,
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "",  # those of the name
    # As NumPy up to 2.3 and from 2.4 on calls them; it ignores the names that it lacks.
    "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL "
    "AVX512_SPR X86_V4",
}


def environment_of(bits: str) -> Mapping[str, str]:
    return _ENVIRONMENT if bits == PORTABLE else {}


def python_with(bits: str) -> list[str]:
    """Return the command that starts Python with these bits; arguments may follow."""
    variables = [f"{name}={value}" for name, value in environment_of(bits).items()]
    return [*(["env", *variables] if variables else []), sys.executable]


def blas_libraries() -> list[str]:
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
    kernels = {each.rpartition(" ")[2] for each in found}
    if bits == PORTABLE and kernels != {f"({_ARCHITECTURE})"}:
        raise SettingError(
            f"--bits portable with {', '.join(found)}: expected OpenBLAS on an x86-64 processor, "
            f"as in NumPy's wheels, and a process that 'dist-net train' or 'join' has started"
        )


def with_bits(digest: str, bits: str) -> str:
    """Return the shared facts of a run with its bits; see ``LoadedRecipe.digest``."""
    return f"{digest}; bits {PORTABLE}" if bits == PORTABLE else digest


def bits_in(digest: str) -> str:
    return PORTABLE if digest.endswith(with_bits("", PORTABLE)) else FAST


def kernel_digest(shapes: Iterable[Sequence[int]]) -> int:
    """Return a digest of fixed products and elementwise operations, by this process's kernels.

    ``shapes``: of the parameters, and so of the products, up to ``_LARGEST`` in each
    direction. Processes whose digests are equal round alike, as far as these operations show, and
    both have numba's loops, or neither has.
    """
    digest, random = blake2b(digest_size=7), np.random.default_rng(0)
    sizes = {(math.prod(shape[:-1]), shape[-1]) for shape in shapes if len(shape) > 1}
    for height, width in sorted({(min(h, _LARGEST), min(w, _LARGEST)) for h, w in sizes}):
        inputs = random.random((_ROWS, height), np.float32) - np.float32(0.5)
        outputs = inputs @ (random.random((height, width), np.float32) - np.float32(0.5))
        digest.update(outputs.tobytes())
        digest.update((inputs.T @ outputs).tobytes())
    numbers = random.random(4096, np.float32)
    for operation in (np.exp, np.log1p, np.tanh, np.sqrt, np.sum):
        digest.update(operation(numbers).tobytes())
    digest.update(b"numba" if find_spec("numba") else b"NumPy")
    return int.from_bytes(digest.digest())


OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")
MAX_BLAS = 128  # characters, the codec's limit


def available_cores() -> int:
    """Return the number of threads that can run at once, at least 1; a quota is rounded down.

    The kernel stops all threads that exceed a quota for the rest of each period.
    """
    return max(1, int(min([allowed_cores(), *quotas(OWN_CGROUPS, CGROUPS)])))


def cores_beside_server(nodes: Sequence[int], workers: int) -> int:
    """Return the number of cores per worker on nodes with these numbers of cores.

    One more core, on the node where it costs most, is for the server. 0: too few cores.
    """
    for each in range(sum(nodes), 0, -1):
        places = sum(cores // each for cores in nodes)
        taken = max(cores // each - max(0, cores - 1) // each for cores in nodes)
        if places - taken >= workers:
            return each
    return 0


def allowed_cores() -> int:
    """Return the number of cores in this process's affinity, without regard to quotas."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # macOS has no such list


def own_equipment(threads: int, kernels: int = 0) -> Equipment:
    """Return the equipment of this process, which computes in ``threads``.

    Its BLAS is named by version and kernels, or "". ``kernels``: see ``kernel_digest``.
    """
    return Equipment(
        socket.gethostname(),
        os.cpu_count() or 0,
        allowed_cores(),
        min(quotas(OWN_CGROUPS, CGROUPS), default=0.0),
        threads,
        ", ".join(blas_libraries())[:MAX_BLAS],
        kernels,
    )


def quotas(own_cgroups: Path, root: Path) -> Iterator[float]:
    """Yield the quotas of a process in cores: of its cgroups and of their parents.

    ``own_cgroups``: a file like /proc/PID/cgroup (cgroups(7)), of version 1 or 2; ``root``: the
    mount point. In a container, the process's own cgroup is often the root.
    """
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        names = ("cpu.cfs_quota_us", "cpu.cfs_period_us") if controllers else ("cpu.max",)
        mounted = root / controllers
        place = mounted / path.lstrip("/")
        for directory in (place, *place.parents):
            if not directory.is_relative_to(mounted):
                break
            with suppress(OSError, ValueError, ZeroDivisionError):
                texts = " ".join((directory / name).read_text() for name in names)
                quota, period = map(int, texts.split())
                if quota > 0:  # without a quota, version 1 has -1, and version 2 "max"
                    yield quota / period
