"""AdaGrad: a rate for each parameter that falls with the gradients it has seen.

Source: Keras 3 ``Adagrad``, after Duchi, Hazan & Singer 2011; ε stands inside the root.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from dist_net.optim.rule import StripRule, Vector
from dist_net.optim.settings import require_not_negative, require_positive


@dataclass(frozen=True)
class AdaGrad:
    """a ← a + g²;  w ← w - η g / √(a + ε), from a = ``initial_accumulator``."""

    epsilon: float = 1e-7
    initial_accumulator: float = 0.1

    def __post_init__(self) -> None:
        require_positive("epsilon", self.epsilon)
        require_not_negative("initial_accumulator", self.initial_accumulator)

    def start(self, size: int, dtype: DTypeLike = np.float32) -> "AdaGradRule":
        """Return a fresh rule for vectors of ``size`` elements."""
        return AdaGradRule(size, dtype, self)


class AdaGradRule(StripRule):
    """AdaGrad; its state is ``accumulator``, the sum of squared gradients."""

    loop = "adagrad"

    def __init__(self, size: int, dtype: DTypeLike, settings: AdaGrad) -> None:
        self.constants = (settings.epsilon,)
        super().__init__(size, dtype, accumulator=settings.initial_accumulator)
        self.epsilon = settings.epsilon

    def update_strip(
        self,
        weights: Vector,
        gradient: Vector,
        out: Vector,
        rate: float,
        scratch: Vector,
        *state: Vector,
    ) -> None:
        """a ← a + g²;  w ← w - η g / √(a + ε)."""
        (accumulator,) = state
        np.multiply(gradient, gradient, out=scratch)
        accumulator += scratch
        np.add(accumulator, self.epsilon, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(gradient, scratch, out=scratch)
        scratch *= rate
        np.subtract(weights, scratch, out=out)
