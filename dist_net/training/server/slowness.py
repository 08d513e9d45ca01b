"""Slow workers, and the visible causes. Pure; time is passed in.

A cause is named only if the workers' reported equipment or the timing of their messages shows it.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from dist_net.ground.printable import counted
from dist_net.training.server.members import Member

SLOW_SHARE = 0.6
"""A worker is slow below this share of the other workers' median speed."""

MEASURED_S = 3.0
"""A worker's speed is known after it has had work for this time."""

STALLED_S = 5.0
STALLED_PUSHES = 5
"""A worker is stalled after ``STALLED_PUSHES`` times its time per push, at least ``STALLED_S``."""

SLOW_LINK_S = 0.02
SLOW_LINK_FACTOR = 3
"""A link is slow above ``SLOW_LINK_FACTOR`` times the others' median round trip, at least
``SLOW_LINK_S``: a busy host seldom delays messages by more."""


class Slowness(NamedTuple):
    """A worker's speed, for each of its processes, as a share of the other workers' median.

    ``speed_share`` is None if either is unknown; ``slow_because`` are phrases for the user.
    """

    speed_share: float | None
    is_slow: bool = False
    slow_because: tuple[str, ...] = ()


def slowness_of(members: Sequence[Member], now: float) -> dict[int, Slowness]:
    """Compare each worker with the others, by worker id."""
    rates = {
        each.worker_id: each.speed.samples_per_s(now) / each.parts
        for each in members
        if each.speed.measured_s(now) >= MEASURED_S
    }
    median_rate = medians_of_others(rates.values())
    causes = _Causes(members)
    found = {}
    for member in members:
        rate = rates.get(member.worker_id)
        median = rate if rate is None else median_rate(rate)
        share = rate / median if rate is not None and median else None
        silence = list(_silence(member, now))
        is_slow = bool(silence) or (share is not None and share < SLOW_SHARE)
        seen = (*silence, *causes.seen_at(member)) if is_slow else ()
        found[member.worker_id] = Slowness(share, is_slow, seen)
    return found


def medians_of_others(values: Iterable[float]) -> Callable[[float], float | None]:
    """Return a function of a value: the median of the others, or None."""
    ordered = sorted(values)
    rest = len(ordered) - 1

    def median(own: float) -> float | None:
        if rest < 1:
            return None
        place = bisect_left(ordered, own)
        low, high = (ordered[each + (each >= place)] for each in ((rest - 1) // 2, rest // 2))
        return (low + high) / 2

    return median


def _silence(member: Member, now: float) -> Iterator[str]:
    silent_s, still_s = now - member.heard_s, now - member.progress_s
    long_s = STALLED_PUSHES * (now - member.joined_s) / max(1, member.pushes)
    if silent_s > member.patience_s / 2:
        yield f"silent for {silent_s:.1f} s: it is stopped, or its network is cut"
    elif member.speed.is_measuring and still_s > max(STALLED_S, long_s):
        yield f"no gradient for {still_s:.0f} s, though it is alive"


class _Causes:
    """The differences between workers that make some of them slow."""

    def __init__(self, members: Sequence[Member]) -> None:
        everybody = [each.equipment for each in members]
        self._median_threads = medians_of_others(each.threads for each in everybody)
        self._median_exchange_s = medians_of_others(each.lease_times.exchange_s for each in members)
        self._threads_on: Counter[str] = Counter()
        for each in everybody:
            self._threads_on[each.host] += each.threads
        [(self._blas, count)] = Counter(each.blas for each in everybody).most_common(1) or [("", 0)]
        self._is_usual_blas = 2 * count > len(everybody)

    def seen_at(self, member: Member) -> Iterator[str]:
        own = member.equipment
        together = self._threads_on[own.host]
        if 0 < own.core_quota < own.threads:
            yield f"{counted(own.threads, 'thread')} with a quota of {own.core_quota:g} cores"
        if 0 < own.cores < own.threads:
            yield f"{counted(own.threads, 'thread')} on {counted(own.cores, 'core')}"
        elif 0 < own.host_cores < together < self._threads_on.total():  # other hosts take part
            cores = counted(own.host_cores, "core")
            yield f"{together} threads of this run on the {cores} of {own.host}"
        median_threads = self._median_threads(own.threads)
        if median_threads and 0 < own.threads < median_threads:
            yield f"{counted(own.threads, 'thread')}, the others {median_threads:g}"
        exchange_s = member.lease_times.exchange_s
        median_s = self._median_exchange_s(exchange_s) or 0.0
        if exchange_s > max(SLOW_LINK_S, SLOW_LINK_FACTOR * median_s):
            others_ms = f"the others' {median_s * 1e3:.1f}"
            yield f"its exchanges take {exchange_s * 1e3:.1f} ms, {others_ms}"
        if self._is_usual_blas and own.blas != self._blas:
            yield f"its BLAS is {own.blas or 'unknown'}, the others' {self._blas or 'unknown'}"
