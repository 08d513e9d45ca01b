"""The cores of this process, by its affinity and its cgroups' quotas, and its BLAS."""

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from dist_net.processes.kernels import blas_libraries
from dist_net.wire.messages import Equipment

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
