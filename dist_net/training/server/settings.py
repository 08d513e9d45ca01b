"""The settings of a run: recipe, samples, optimizer and time limits; validated once."""

import math
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

from dist_net.errors import SettingError
from dist_net.ground.checkpoint import OPTIMIZER_PREFIX
from dist_net.ground.shared_facts import difference
from dist_net.ground.vector import ArrayShapes
from dist_net.optim import (
    SGD,
    ConstantRate,
    LearningRate,
    Optimizer,
    Schedule,
    UpdateRule,
    start_rule,
)
from dist_net.optim.ranges import count, use_plain_numbers
from dist_net.training.server.consistency import Consistency
from dist_net.wire.codec import MAX_ARRAY_BYTES
from dist_net.wire.lease_steps import minibatches_in
from dist_net.wire.messages import Join, StepSettings
from dist_net.wire.packing import StatePacking

TAKEOVER_AFTER_S = 5.0
MINORITY = WAITS, CONTINUES = "pause", "continue"
"""The choices of a server without a majority of the run's hosts; see ``Standbys``."""


@dataclass(frozen=True)
class RunSettings:
    """The settings of one run. Raise ``SettingError`` for a value out of range.

    The last ``len(momenta)`` arrays of ``layout`` are buffers: moving averages with these momenta.
    ``samples``: in one epoch. A lease has ``local_steps`` minibatches; None: as many as
    accuracy permits and the link needs. ``schedule`` multiplies ``learning_rate`` at each step. A
    worker that is silent for ``heartbeat_timeout_s`` is lost. Without ``has_classes``, no accuracy
    is reported. ``clip_norm`` and ``average_decay``: see ``UpdateRule``. A standby takes over after
    ``takeover_after_s`` of silence; ``minority``: see ``dist_net.training.server.standbys``.
    """

    recipe: str
    recipe_digest: str
    layout: ArrayShapes
    samples: int
    epochs: int
    batch_size: int
    seed: int = 0
    optimizer: Optimizer = field(default_factory=SGD)
    learning_rate: float = 0.1
    schedule: Schedule = field(default_factory=ConstantRate)
    momenta: tuple[float, ...] = ()
    heartbeat_interval_s: float = 0.3
    heartbeat_timeout_s: float = 1.5
    recipe_record: dict[str, Any] = field(default_factory=dict)
    has_classes: bool = True
    clip_norm: float = 0.0
    average_decay: float = 0.0
    consistency: Consistency = Consistency.ROUNDS
    local_steps: int | None = None
    takeover_after_s: float = TAKEOVER_AFTER_S
    minority: str = WAITS

    def __post_init__(self) -> None:
        use_plain_numbers(self)
        count("samples", self.samples)
        if self.local_steps is not None:
            count("local_steps", self.local_steps)
        interval_s, layout, momenta = self.heartbeat_interval_s, self.layout, self.momenta
        is_bsp = self.consistency is Consistency.BSP
        expected = "1 with consistency='bsp', which averages single steps; for more, use rounds"
        self._require("local_steps", expected, not is_bsp or self.local_steps in (None, 1))
        expected = f"at most the number of samples, which is {self.samples}"
        self._require("batch_size", expected, self.batch_size <= self.samples)
        self.learning_rate_at.require_rates()
        expected = f"more than twice heartbeat_interval_s, which is {interval_s}"
        is_long = 2 * interval_s < self.heartbeat_timeout_s < math.inf
        self._require("heartbeat_timeout_s", expected, is_long)
        expected = f"at least 1 second, and 5 times heartbeat_interval_s: {interval_s}"
        is_long = max(1, 5 * interval_s) <= self.takeover_after_s < math.inf
        self._require("takeover_after_s", expected, is_long)
        self._require("minority", " or ".join(MINORITY), self.minority in MINORITY)
        expected = "at least one parameter; unique names that do not begin with 'optimizer/'"
        self._require("layout", expected, _is_layout(layout))
        longest = MAX_ARRAY_BYTES // 4  # longer weights could not be sent
        if self.vector_size > longest:
            raise SettingError(
                f"the model has {self.vector_size} parameters: expected at most {longest}"
            )
        expected = f"numbers in [0, 1], fewer than the layout's {len(layout)} arrays"
        is_valid = len(momenta) < len(layout) and all(0 <= each <= 1 for each in momenta)
        self._require("momenta", expected, is_valid)

    def _require(self, name: str, expected: str, holds: bool) -> None:
        if not holds:
            raise SettingError(f"{name}={getattr(self, name)!r}: expected {expected}")

    @cached_property
    def vector_size(self) -> int:
        """The length of the flat vector of parameters and buffers."""
        return sum(math.prod(shape) for _, shape in self.layout)

    @property
    def parameter_count(self) -> int:
        """The number of trained elements of that vector."""
        trained = self.layout[: len(self.layout) - len(self.momenta)]
        return sum(math.prod(shape) for _, shape in trained)

    @property
    def samples_total(self) -> int:
        return self.samples * self.epochs

    @property
    def minibatches(self) -> int:
        return self.epochs * minibatches_in(self.samples, self.batch_size)

    @cached_property
    def packing(self) -> StatePacking:
        """How training states travel between hosts."""
        return StatePacking(*self.start_rule().sizes)

    def start_rule(self) -> UpdateRule:
        """Return a new rule for local steps."""
        return start_rule(
            self.optimizer, self.layout, self.momenta, self.clip_norm, self.average_decay
        )

    @property
    def step_settings(self) -> StepSettings:
        return StepSettings.of(self, optimizer=str(self.optimizer))

    @property
    def learning_rate_at(self) -> LearningRate:
        """The learning rate by the samples applied before, counted over all epochs."""
        return LearningRate(self.learning_rate, self.schedule, self.samples, self.epochs)

    @property
    def size_fault(self) -> str | None:
        """Why the training state cannot be sent to another host; None if it can."""
        size_bytes = 4 * self.packing.base_size
        if size_bytes <= MAX_ARRAY_BYTES:
            return None
        return (
            f"the training state of {self.parameter_count:,} parameters and {self.optimizer} is "
            f"{size_bytes:,} bytes when it is sent to another host; expected at most "
            f"{MAX_ARRAY_BYTES:,}: train on this host alone, or with fewer vectors, such as sgd's"
        )

    def refusal_of(self, join: Join) -> str | None:
        """Return the reason to refuse a worker with this recipe; None to accept it."""
        if not join.shares_memory and self.size_fault is not None:
            return self.size_fault
        if (facts := difference(join.recipe_digest, self.recipe_digest)) is not None:
            theirs, own, remedy = facts
            return (
                f"the worker has {theirs}; the server, which trains {self.recipe!r}, has {own}: "
                f"{remedy}"
            )
        if join.vector_size != self.vector_size:
            return (
                f"the worker's model has {join.vector_size} parameters, the server's "
                f"{self.vector_size}: install the same dist_net on both hosts"
            )
        return None

    def to_json(self) -> dict[str, Any]:
        """Return the settings for a checkpoint; optimizer, schedule and consistency as text."""
        own_text = ("optimizer", "schedule", "consistency")
        elsewhere = ("recipe", "recipe_digest", "recipe_record", "layout")
        return {
            entry.name: str(value) if entry.name in own_text else value
            for entry in fields(self)
            if entry.name not in elsewhere
            for value in (getattr(self, entry.name),)
        }


def _is_layout(layout: ArrayShapes) -> bool:
    names = [name for name, _ in layout]
    return (
        0 < len(names) == len(set(names))
        and not any(name.startswith(OPTIMIZER_PREFIX) for name in names)
        and all(size >= 1 for _, shape in layout for size in shape)
    )
