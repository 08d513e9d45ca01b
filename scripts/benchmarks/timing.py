"""How a step is timed: warmed up, repeated, and told as a median; imports the standard library."""

from collections.abc import Callable
from statistics import median
from time import perf_counter

REPEATS = 5
SECONDS_PER_REPEAT = 0.1


def median_us(step: Callable[[], object], repeats: int = REPEATS) -> float:
    """Microseconds of one call of `step`: the median of `repeats` runs of about 0.1 s each."""
    count = 1
    while (seconds := seconds_of(step, count)) < SECONDS_PER_REPEAT:
        count = max(2 * count, int(count * SECONDS_PER_REPEAT / max(seconds, 1e-6)))
    return 1e6 * median(seconds_of(step, count) / count for _ in range(repeats))


def seconds_of(step: Callable[[], object], count: int) -> float:
    """Seconds that `count` calls of `step` take."""
    start = perf_counter()
    for _ in range(count):
        step()
    return perf_counter() - start


def round_us(step: Callable[[], object], seconds: float) -> float:
    """Microseconds of one call of `step`: once untimed, then for about so many seconds.

    The median of the calls. What ran before has left the caches cold; the first call warms them.
    """
    step()
    times: list[float] = []
    while not times or sum(times) < seconds:
        times.append(seconds_of(step, 1))
    return 1e6 * median(times)


def training_case(workers: int, batch_size: int, us_per_step: float) -> dict[str, float]:
    """One case of `dist-net bench training`; `workers` is 0 for one process without a cluster.

    `us_per_step` is that of one worker, `samples_per_s` that of all workers together.
    """
    samples_per_s = max(workers, 1) * batch_size * 1e6 / us_per_step
    return {
        "workers": workers,
        "batch_size": batch_size,
        "us_per_step": round(us_per_step, 1),
        "samples_per_s": round(samples_per_s),
    }
