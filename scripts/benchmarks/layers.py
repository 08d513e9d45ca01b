"""Where the time of a run goes, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter


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
        layer_row(step, batch, median(of_step)) for step, of_step in zip(steps, times, strict=True)
    ]


def layer_row(step: LayerStep, batch: int, seconds: float) -> dict[str, float | str]:
    """The row of one step that takes so many seconds."""
    return {
        "layer": step.name,
        "algorithm": step.algorithm,
        "ms_per_image": round(1e3 * seconds / batch, 3),
        "effective_gflops": round(1e-9 * step.flops / max(seconds, 1e-9), 1),
    }
