"""How many cores this process may use: by its affinity, and by the quotas of its cgroups."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

OWN_CGROUPS = Path("/proc/self/cgroup")
CGROUPS = Path("/sys/fs/cgroup")


def available_cores() -> int:
    """How many threads can run at once, at least 1; a quota of 1.5 cores counts as one.

    More threads than that would be stopped together for the rest of each period.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:  # macOS has no such list
        cores = os.cpu_count() or 1
    return max(1, int(min([cores, *quotas(OWN_CGROUPS, CGROUPS)])))


def quotas(own_cgroups: Path, root: Path) -> Iterator[float]:
    """The quotas that hold for a process, in cores: of its cgroups and of all that they lie in.

    ``own_cgroups`` is as /proc/PID/cgroup (cgroups(7)); ``root`` is where they are mounted. Both
    versions of cgroups are read. In a container its own cgroup is often the root.
    """
    try:
        lines = own_cgroups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounted = root / controllers
        place = mounted / path.lstrip("/")
        for directory in (place, *place.parents):
            if not directory.is_relative_to(mounted):
                break
            with suppress(OSError, ValueError, ZeroDivisionError):
                quota, period = _quota_and_period(directory, is_second=not controllers)
                if quota > 0:  # version 1 says -1 for none
                    yield quota / period


def _quota_and_period(directory: Path, is_second: bool) -> tuple[int, int]:
    """Microseconds in each period of microseconds; raises ValueError where there is no quota."""
    if is_second:
        quota, period = (directory / "cpu.max").read_text().split()
    else:
        quota, period = (
            (directory / f"cpu.cfs_{each}_us").read_text() for each in ("quota", "period")
        )
    return int(quota), int(period)
