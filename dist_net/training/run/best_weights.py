"""The weights of a run with the best test result, kept in addition to the last weights."""

from __future__ import annotations

import math
from pathlib import Path

from dist_net.errors import CheckpointError
from dist_net.nets.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from dist_net.training.server.settings import RunSettings
from dist_net.vector import Vector

LOWER = 0.99


class BestWeights:
    """Keep the best weights in a checkpoint at ``path``, without the state of the run.

    The best weights have the highest accuracy and, if that is equal or None, the lowest loss. Only
    weights better than those already stored replace them. ``patience``: the number of evaluations
    in a row without progress, which is a higher accuracy or a loss that is 1 % lower; None: any.
    Raise the errors of ``read_checkpoint``.
    """

    def __init__(self, path: Path, settings: RunSettings, patience: int | None = None) -> None:
        self._path = path
        self._settings = settings
        self._patience = patience
        self._without_progress = 0
        self._accuracy, self._loss = -math.inf, math.inf
        if path.exists():
            found = read_checkpoint(path)
            found.require_layout(settings.layout)
            accuracy, loss = (found.counters.get(name) for name in ("accuracy", "loss"))
            if type(loss) is not float or type(accuracy) not in (float, type(None)):
                raise CheckpointError(
                    f"{path} lacks the accuracy or loss of its weights; expected a checkpoint "
                    f"written by training. Delete it: the next evaluation writes a new one"
                )
            self._accuracy, self._loss = accuracy or 0.0, loss
            if found.recipe_record != settings.recipe_record:
                # The run is resumed with other options: the checkpoint must name the new recipe.
                self._write(accuracy, loss, found.version, found.weights)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether ``patience`` evaluations in a row have shown no progress."""
        return self._patience is not None and self._without_progress >= self._patience

    def take(self, accuracy: float | None, loss: float, version: int, weights: Vector) -> bool:
        """Write the weights if they are the best so far; return whether they are.

        Raise FileWriteError.
        """
        known = 0.0 if accuracy is None else accuracy
        is_progress = known > self._accuracy or loss < LOWER * self._loss
        self._without_progress = 0 if is_progress else self._without_progress + 1
        if not (known, -loss) > (self._accuracy, -self._loss):
            return False
        self._write(accuracy, loss, version, weights)
        self._accuracy, self._loss = known, loss
        return True

    def _write(self, accuracy: float | None, loss: float, version: int, weights: Vector) -> None:
        settings = self._settings
        write_checkpoint(
            self._path,
            Checkpoint(
                recipe=settings.recipe,
                recipe_digest=settings.recipe_digest,
                recipe_record=settings.recipe_record,
                layout=settings.layout,
                version=version,
                settings=settings.to_json(),
                ledger={},
                counters={"accuracy": accuracy, "loss": loss},
                weights=weights,
                optimizer_state={},
            ),
        )
