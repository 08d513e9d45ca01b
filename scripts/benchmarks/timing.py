"""How steps are timed: warmed up, repeated, as medians. Imports the standard library only."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    """One case of ``scripts/bench training``; `workers` is 0 for one process without a cluster.

    `us_per_step` is that of one worker, `samples_per_s` that of all workers together.
    """
    samples_per_s = max(workers, 1) * batch_size * 1e6 / us_per_step
    return {
        "workers": workers,
        "batch_size": batch_size,
        "us_per_step": round(us_per_step, 1),
        "samples_per_s": round(samples_per_s),
    }


@dataclass(frozen=True)
class LayerStep:
    """A part of a run: calling ``run`` in the order of the steps does the whole.

    ``flops`` are those of the direct algorithm, 2 for a multiplication with its addition, for
    the whole batch; 0 where they do not count. ``algorithm`` is the name of what computes it.
    """

    name: str
    algorithm: str
    flops: float
    run: Callable[[], object]


def time_layers(
    steps: Sequence[LayerStep],
    batch: int,
    seconds: float,
    now: Callable[[], float] = perf_counter,
) -> list[dict[str, float | str]]:
    """A row for each step: ``layer algorithm ms_per_image effective_gflops``, as medians.

    The steps run in order, over and over: once untimed, then for about so many seconds, once at
    least, so that each finds the caches as it finds them in a run.
    """
    if not steps:
        return []
    for step in steps:
        step.run()
    times: list[list[float]] = [[] for _ in steps]
    start = now()
    while not times[-1] or now() - start < seconds:
        for step, of_step in zip(steps, times, strict=True):
            before = now()
            step.run()
            of_step.append(now() - before)
    return [
        {
            "layer": step.name,
            "algorithm": step.algorithm,
            "ms_per_image": round(1e3 * median(of_step) / batch, 3),
            "effective_gflops": round(1e-9 * step.flops / max(median(of_step), 1e-9), 1),
        }
        for step, of_step in zip(steps, times, strict=True)
    ]
