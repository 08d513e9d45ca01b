"""Adam: adaptive moment estimation.

Source: Keras 3 ``Adam``, which is Kingma & Ba 2015 (arXiv 1412.6980) in the more efficient order
given at the end of its section 2: the bias corrections are folded into the rate, and ``epsilon``
is that section's ε̂, added to the uncorrected √v.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike

from dist_net.optim.rule import CRUMB, StripRule, Vector, keep_normal
from dist_net.optim.settings import require_fraction, require_positive


@dataclass(frozen=True)
class Adam:
    """m ← β₁ m + (1-β₁) g;  v ← β₂ v + (1-β₂) g²;  w ← w - ηₜ m / (√v + ε).

    ηₜ = η √(1-β₂ᵗ) / (1-β₁ᵗ) at step t.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-7

    def __post_init__(self) -> None:
        require_fraction("beta1", self.beta1)
        require_fraction("beta2", self.beta2)
        require_positive("epsilon", self.epsilon)

    def start(self, size: int, dtype: DTypeLike = np.float32) -> "AdamRule":
        """Return a fresh rule for vectors of ``size`` elements."""
        return AdamRule(size, dtype, self)


class AdamRule(StripRule):
    """Adam; its state is the two running means ``mean`` (of g) and ``mean_square`` (of g²).

    The step count is not kept here: the caller passes it, and a checkpoint keeps it as the version.
    """

    loop = "adam"

    def __init__(self, size: int, dtype: DTypeLike, settings: Adam) -> None:
        self.constants = (1 - settings.beta1, 1 - settings.beta2, settings.epsilon, CRUMB)
        super().__init__(size, dtype, mean=0.0, mean_square=0.0)
        self.settings = settings

    def rate(self, learning_rate: float, step: int) -> float:
        """Return ηₜ, the learning rate with both bias corrections."""
        beta1, beta2 = self.settings.beta1, self.settings.beta2
        return learning_rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)

    def update_strip(
        self,
        weights: Vector,
        gradient: Vector,
        out: Vector,
        rate: float,
        scratch: Vector,
        *state: Vector,
    ) -> None:
        """Move both means towards g and g², then w ← w - ηₜ m / (√v + ε)."""
        mean, mean_square = state
        np.subtract(gradient, mean, out=scratch)
        scratch *= 1 - self.settings.beta1
        mean += scratch
        keep_normal(mean)
        np.multiply(gradient, gradient, out=scratch)
        scratch -= mean_square
        scratch *= 1 - self.settings.beta2
        mean_square += scratch
        keep_normal(mean_square)
        np.sqrt(mean_square, out=scratch)
        scratch += self.settings.epsilon
        np.divide(mean, scratch, out=scratch)
        scratch *= rate
        np.subtract(weights, scratch, out=out)
