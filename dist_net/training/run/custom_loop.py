"""A training loop of the caller's own as a worker of a run: ``join``."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from dist_net.data.samples import SampleIndices
from dist_net.errors import RecipeError
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.gradient_recipe import checked_gradient
from dist_net.nets.run_contents import load_run_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.equipment import own_equipment
from dist_net.processes.own_directory import temporary_directory
from dist_net.training.run.joined_run import offered_by
from dist_net.training.worker.local_steps import (
    LocalSteps,
    MinibatchGradient,
    ShuffledRows,
    local_steps,
)
from dist_net.training.worker.loop import WorkerLoop
from dist_net.wire.messages import Join, StepSettings
from dist_net.wire.token import TRAINING, JoinToken
from dist_net.wire.token_exchange import REACH_WITHIN_S, join_by_token


@dataclass(eq=False)
class LeasedMinibatch:
    """A minibatch of a lease: the indices ``rows`` of its samples, and the ``weights``.

    Both are borrowed until the next turn of the loop.
    """

    weights: Vector
    rows: SampleIndices
    pushed: MinibatchGradient | None = None

    def __post_init__(self) -> None:
        self.weights = self.weights.view()
        self.weights.flags.writeable = False

    def push(self, loss_sum: float, gradient: Vector) -> None:
        """Take a local step of the run's optimizer along this gradient, the mean of the rows.

        ``gradient`` is borrowed until the next turn of the loop. Raise RecipeError if it is not
        as long as the weights, or not float32.
        """
        self.pushed = MinibatchGradient(*checked_gradient((loss_sum, gradient), self.weights.size))


def join(
    token: str,
    *,
    trust_recipe: bool = False,
    timeout_s: float = REACH_WITHIN_S,
    data: str | Path | None = None,
) -> Iterator[LeasedMinibatch]:
    """Take part in the run of a token; yield each minibatch; the caller pushes its gradient.

    The iteration ends with the run; a caller that leaves it leaves the run. The run's recipe
    supplies the optimizer and the layout. It is Python code, which runs on this host only if the
    user trusts it: see ``dist_net.load``. Results are as exact as those of other workers, but only
    a recipe's own ``gradient`` can be replayed. ``data`` is this host's directory of the files that
    the recipe reads beside its own.

    Raise TokenError and NoAnswerError if the server cannot be joined, UntrustedRecipeError,
    RecipeError if a minibatch has no push, and the errors of ``WorkerLoop.train``.
    """
    parsed = JoinToken.parse(token)
    parsed.require_kind(TRAINING)
    server = join_by_token(parsed, timeout_s=timeout_s)
    offered = offered_by(server, timeout_s)
    with ExitStack() as opened:
        directory = RunDirectory(opened.enter_context(temporary_directory()) / "run")
        directory.make()
        offered.keep(directory, data=data)
        recipe = load_run_recipe(directory, trust_recipe).recipe
        dataset = recipe.load_dataset()
        rows = ShuffledRows(0, 0)
        leased: LeasedMinibatch | None = None

        def pushed(*_: object) -> MinibatchGradient:
            if leased is None or leased.pushed is None:
                raise RecipeError(
                    "a turn of the loop pushed no gradient; expected lease.push(loss_sum, gradient)"
                )
            return leased.pushed

        def local_of(settings: StepSettings) -> LocalSteps:
            nonlocal rows
            rows = ShuffledRows(settings.seed, len(dataset.train_targets))
            return local_steps(recipe, dataset, settings, gradient_at=pushed)

        name, equipment = f"{socket.gethostname()[:100]}:{os.getpid()}", own_equipment(threads=1)
        facts = name, 0, offered.digest, recipe.layout.size, True
        request = Join(*facts, equipment=equipment)
        worker = WorkerLoop(local_of, server, request, join_timeout_s=timeout_s)
        opened.enter_context(worker)
        steps = worker.steps()
        try:
            for weights, minibatch in steps:
                leased = LeasedMinibatch(weights, rows.of(minibatch))
                yield leased
        finally:  # the caller leaves the loop, and so the run
            worker.stop("its loop has ended")
            for _ in steps:
                pass
