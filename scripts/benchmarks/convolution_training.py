"""The training step of the recipe ``fashion-mnist-conv``, beside the same net in PyTorch.

Both begin with the same weights and the same random images, and have to find the same losses in
their first steps, so that the same step is measured: minibatch, forward, backward, update.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from benchmarks.rounds import Contest, Contestant, Schedule

BATCH = 64
THREADS = 2
FIRST_STEPS = 2
LARGEST_DIFFERENCE = 1e-3
"""Of the losses, relative. The second one shows the first step's gradients and update; with the
third, Adam has made large what rounding left of gradients near zero: 1.3e-3 with this recipe."""

OURS = Contestant("dist_net", "convolution_training_step", ("numpy",), ((BATCH, THREADS),))
PEERS = (replace(OURS, name="pytorch", module="pytorch_convolution_training", packages=("torch",)),)

Row = dict[str, Any]


def measure(schedule: Schedule, with_peers: bool, say: Callable[[str], None]) -> list[Row]:
    """A row for ours and for each peer: ``name version batch threads us_per_step``.

    Raises BenchmarkError if a measurement fails, or a peer's losses are not ours.
    """
    contestants = (OURS, *(PEERS if with_peers else ()))
    with Contest(contestants, Path(), schedule, say) as training:
        check_losses(training)
        versions = {each.name: training.order(each, "version") for each in training.contestants}
        return [
            {
                "name": name,
                "version": versions[name],
                "batch": batch,
                "threads": threads,
                "us_per_step": round(time, 1),
            }
            for name, of in training.times().items()
            for (batch, threads), time in of.items()
        ]


def check_losses(training: Contest) -> None:
    """Raises BenchmarkError for a contestant whose first losses are not the first one's."""
    losses = {}
    for each in training.contestants:
        ((batch, threads),) = each.cases
        details = {"batch": batch, "threads": threads, "runs": FIRST_STEPS}
        losses[each.name] = training.order(each, "answer", **details)
    own, *_ = losses.values()
    for name, theirs in losses.items():
        pairs = zip(theirs, own, strict=True)
        if not all(abs(a - b) <= LARGEST_DIFFERENCE * abs(b) for a, b in pairs):
            raise BenchmarkError(
                f"{name} trains another net: its losses begin with {theirs}, ours with {own}; "
                f"expected no more than {LARGEST_DIFFERENCE:g} between them"
            )


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Ours to theirs, below 1 where ours is faster."""
    own, *others = rows
    return {
        f"conv_training_step_to_{each['name']}": round(own["us_per_step"] / each["us_per_step"], 3)
        for each in others
    }
