"""The consistency of a run: the lead of a worker over others, and rounds of updates. Pure."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from dist_net.errors import SettingError
from dist_net.training.server.journal import Applied
from dist_net.vector import Vector
from dist_net.wire.packing import unpack_difference


@dataclass(frozen=True)
class Consistency:
    """One of ``auto``, ``async``, ``ssp:N``, ``bsp:N``, ``local:H[:N]`` and ``local:auto``.

    async: workers never wait for each other. SSP (stale synchronous parallel, Ho 2013): a worker
    that has completed more than ``max_ahead`` steps more than the slowest waits for it. BSP (bulk
    synchronous parallel): the gradients of ``round_leases`` minibatches are averaged, and
    applied as one update.

    local (DiLoCo, arXiv 2311.08105): a lease is ``local_steps`` minibatches. The worker takes that
    many steps by the run's optimizer, which starts afresh for each lease, and pushes the difference
    of the weights. The differences of ``round_leases`` leases are averaged and applied as one
    update, with Nesterov momentum. With ``local:H`` a round has a lease for each worker, of H
    minibatches for the fastest and fewer for slower ones; with ``local:auto``, H follows the times
    of steps and exchanges.

    auto: async among at most ``FREE_WORKERS`` workers. Beyond, they go in step: as with ``ssp:0``,
    but much slower workers hold up no other worker, and the learning rate is bounded, more so
    with more workers. See docs/decisions/0016-workers-in-step.md.
    """

    max_ahead: int | None = None
    round_leases: int | None = None
    is_automatic: bool = False
    local_steps: int | None = None

    @classmethod
    def parse(cls, text: str, workers: int = 0) -> Self:
        """Parse ``text``; ``bsp`` alone means one minibatch for each of ``workers``.

        Raise ``SettingError`` for any other text.
        """
        kind, _, number = text.partition(":")
        if text == "bsp" and workers:
            number = str(workers)
        if text == "async":
            return cls()
        if text == "local:auto":
            return cls(round_leases=ONE_FOR_EACH_WORKER, local_steps=AUTOMATIC_STEPS)
        if text == "auto":
            return cls(max_ahead=0, is_automatic=True)
        if text == "bsp" and not number:
            raise SettingError(
                "consistency='bsp': the number of workers is unknown; expected bsp:N with the "
                "number of minibatches in an update, usually one for each worker"
            )
        match kind, [_number(each) for each in number.split(":")]:
            case "ssp", [int(max_ahead)]:
                return cls(max_ahead=max_ahead)
            case "bsp", [int(minibatches)] if minibatches:
                return cls(round_leases=minibatches)
            case "local", [int(steps)] if steps:
                return cls(round_leases=ONE_FOR_EACH_WORKER, local_steps=steps)
            case "local", [int(steps), int(leases)] if steps and leases:
                return cls(round_leases=leases, local_steps=steps)
        raise SettingError(
            f"consistency={text!r}: expected auto, async, ssp:N with the number of steps that a "
            f"worker may be ahead of the slowest, bsp:N with the number of minibatches in an "
            f"update, or local:H, local:H:N or local:auto with the local steps of a lease and the "
            f"leases in an update, at most {MAX_NUMBER}; bsp alone is a minibatch for each worker "
            f"of 'dist-net train'"
        )

    def __str__(self) -> str:
        if self.is_automatic:
            return "auto"
        if self.max_ahead is not None:
            return f"ssp:{self.max_ahead}"
        if self.local_steps is not None:
            leases = f":{self.round_leases}" if self.round_leases else ""
            return f"local:{self.local_steps or 'auto'}{leases}"
        return "async" if self.round_leases is None else f"bsp:{self.round_leases}"

    @property
    def may_run_ahead(self) -> bool:
        """Whether workers run without waiting, at least in small runs."""
        return self.is_automatic or self == ASYNC

    @property
    def first_steps(self) -> int:
        """The minibatches of a worker's first lease in a run of rounds.

        Few if its length will follow the worker's speed: until then, the others wait for the
        slowest.
        """
        if self.local_steps is None or self.round_leases != ONE_FOR_EACH_WORKER:
            return self.local_steps or 1
        return max(1, self.local_steps // FIRST_SHARE) if self.local_steps else FIRST_STEPS

    def goes_in_step(self, workers: int) -> bool:
        """Check whether fast workers wait for others in a run with this number of workers."""
        return self.max_ahead is not None and not (self.is_automatic and workers <= FREE_WORKERS)

    def max_rate_share(self, workers: int, full_rate_staleness: float) -> float:
        """Return the bound of the learning rate, as a share of its highest value.

        Workers in step compute from the same weights, so the mean staleness of their gradients is
        half their number. Beyond ``full_rate_staleness`` the rate falls with the staleness, as in
        Koloskova et al. 2022 (arXiv 2206.08307), but equally for all gradients: with individual
        rates, a slow worker's samples would count for less.
        """
        if not (self.is_automatic and self.goes_in_step(workers)):
            return 1.0
        return min(1.0, full_rate_staleness / (workers / 2))


def _number(text: str) -> int | None:
    """Parse a whole number up to ``MAX_NUMBER``; return None for any other text."""
    is_short = text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_NUMBER))
    return int(text) if is_short and int(text) <= MAX_NUMBER else None


MAX_NUMBER = 4096
ONE_FOR_EACH_WORKER = AUTOMATIC_STEPS = 0
FIRST_STEPS, FIRST_SHARE = 8, 8
"""Local steps of a worker's first lease, if they are automatic, and the share of it else."""

ASYNC = Consistency()
AUTO = Consistency.parse("auto")

FREE_WORKERS = 4


class Round:
    """Copies of the gradients, or differences, of a round until all have arrived.

    The last ``buffers`` elements are not trained.
    """

    def __init__(self, buffers: int = 0) -> None:
        self._buffers = buffers
        self.loss_sum = 0.0
        self.correct = 0
        self._held: list[tuple[Applied, Vector]] = []
        self._unused: list[Vector] = []

    @property
    def records(self) -> list[Applied]:
        """The records of all gradients, in the order of their samples."""
        return [record for record, _ in self._in_order]

    @property
    def _in_order(self) -> list[tuple[Applied, Vector]]:
        return sorted(self._held, key=lambda each: (each[0].epoch, each[0].start))

    def copied(self, gradient: Vector, size: int, packed_bits: int) -> Vector | None:
        """Return a copy of ``size`` elements for ``add``; None if it is not finite."""
        copy = self._unused.pop() if self._unused else np.empty(size, np.float32)
        if packed_bits:
            unpack_difference(gradient, copy, self._buffers, packed_bits)
        else:
            np.copyto(copy, gradient)
        if np.isfinite(copy).all():
            return copy
        self._unused.append(copy)
        return None

    def add(self, record: Applied, gradient: Vector) -> None:
        """Hold the mean gradient, or the mean difference, of the samples of ``record``."""
        self._held.append((record, gradient))

    def mean(self, of_differences: bool = False) -> Vector:
        """Return the mean gradient of all samples, or the mean difference of all parts.

        A difference is a sum over its samples, so both means weigh samples equally. The bits do
        not depend on the order of arrival. The gradients are overwritten; the result is valid
        until ``clear``.
        """
        gradients = [gradient for _, gradient in self._in_order]
        shares = [each.parts if of_differences else each.samples for each in self.records]
        for share, gradient in zip(shares, gradients, strict=True):
            gradient *= np.float32(share / sum(shares))
        mean, *others = gradients
        for gradient in others:
            mean += gradient
        return mean

    def clear(self) -> None:
        self._unused += [gradient for _, gradient in self._held]
        self._held.clear()
        self.loss_sum, self.correct = 0.0, 0
