"""The training state of a run, version by version. No I/O.

A version is an array that never changes: a reader keeps it as long as it likes, without a copy.
"""

from collections.abc import Mapping

import numpy as np

from dist_net.errors import CheckpointError
from dist_net.ground.checkpoint import evaluated_weights
from dist_net.ground.vector import AVERAGE, Vector
from dist_net.optim import UpdateRule
from dist_net.training.server.consistency import OuterStep
from dist_net.wire.packing import StatePacking

OUTER_MOMENTUM = "outer_momentum"


def frozen(vector: Vector) -> Vector:
    """Return ``vector``, read-only from now on."""
    vector.flags.writeable = False
    return vector


class StateVersions:
    """The state of a run, ``state``, after ``version`` outer steps; see ``UpdateRule``.

    ``outer_momentum`` is the momentum of the outer steps, of the parameters' length.
    """

    def __init__(self, rule: UpdateRule, weights: Vector) -> None:
        self.rule = rule
        self.packing = StatePacking(*rule.sizes)
        self._packed: Vector | None = None
        self.version = 0
        self.state = frozen(rule.initial(weights))
        self._at_rest = frozen(np.zeros(rule.trained_size, np.float32))
        self.outer_momentum = self._at_rest

    @property
    def weights(self) -> Vector:
        """The model's vector: parameters and buffers."""
        return self.state[: self.rule.size]

    @property
    def has_momentum(self) -> bool:
        """Whether the momentum of the outer steps is not zero."""
        return self.outer_momentum is not self._at_rest

    @property
    def vectors(self) -> dict[str, Vector]:
        """The vectors for a checkpoint besides the weights, by name."""
        return self.rule.parts(self.state) | {OUTER_MOMENTUM: self.outer_momentum}

    @property
    def evaluated_weights(self) -> Vector:
        """The weights for evaluation: their average, if one is kept."""
        return evaluated_weights(self.weights, self.vectors)

    def restore(self, version: int, weights: Vector, vectors: Mapping[str, Vector]) -> None:
        """Continue from a checkpoint's ``version``, with copies of its vectors.

        An average of the weights that the checkpoint lacks starts afresh. Raise ``CheckpointError``
        for other vectors than this optimizer's.
        """
        state = self.rule.initial(weights)
        own = self.rule.parts(state) | {OUTER_MOMENTUM: self._at_rest.copy()}
        optional = {AVERAGE} & own.keys() ^ {AVERAGE} & vectors.keys()
        shapes, found = (
            {name: vector.shape for name, vector in of.items() if name not in optional}
            for of in (own, vectors)
        )
        if shapes != found:
            raise CheckpointError(
                f"the checkpoint holds the optimizer's vectors {sorted(found)}, expected "
                f"{sorted(shapes)} of the parameters' length; resume from another checkpoint"
            )
        for name in found:
            np.copyto(own[name], vectors[name])
        if (fault := self.rule.fault_of(state)) is not None:
            raise CheckpointError(
                f"the checkpoint of version {version:,} is no state of a run: {fault}; resume from "
                f"another checkpoint, such as one that dist-net replay writes"
            )
        self.version = version
        self.state, self.outer_momentum = frozen(state), frozen(own[OUTER_MOMENTUM])

    def packed_state(self) -> Vector:
        """Return the state packed for other hosts: the same bytes for every worker."""
        if self._packed is None:
            self._packed = self.packing.pack_base(self.state)
        return self._packed

    def result_of(self, pushed: Vector, base: Vector | None, is_packed: bool) -> Vector:
        """Return a new array: the state, changed as a worker changed ``base``."""
        own, n = self.state, self.rule.trained_size
        result = np.empty_like(own)
        if is_packed:
            self.packing.unpack_result(pushed, own, result)
            return result
        np.copyto(result, pushed)
        if base is not None and base is not own:  # others have changed the weights since
            result[:n] += own[:n] - base[:n]
        return result

    def apply(self, result: Vector, outer: OuterStep) -> bool:
        """Move towards ``result``, which becomes the state. Return False, unchanged, if invalid."""
        n, momentum = self.rule.trained_size, self._at_rest
        with np.errstate(all="ignore"):
            if outer.rate != 1 or outer.momentum:
                weights, moved = self.state[:n], result[:n]
                change = np.subtract(weights, moved)
                if outer.momentum:
                    momentum = np.multiply(self.outer_momentum, np.float32(outer.momentum))
                    momentum += change
                    change += np.multiply(momentum, np.float32(outer.momentum), out=moved)
                change *= np.float32(outer.rate)
                np.subtract(weights, change, out=moved)
            if outer.rate_of_others != 1:
                rest, others = self.state[n:], result[n:]
                others -= rest
                others *= np.float32(outer.rate_of_others)
                others += rest
        for place in self.rule.frozen:  # the mean of equal numbers may be rounded
            result[place] = self.state[place]
        if self.rule.fault_of(result) is not None:
            return False
        self.version += 1
        self._packed = None
        self.state, self.outer_momentum = frozen(result), frozen(momentum)
        return True
