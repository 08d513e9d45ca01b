"""Moving averages beside an optimizer: what a model observes of its data, and nobody trains.

The vector of a model may end in buffers, such as the means and variances of batch normalisation.
Where they lie, its "gradient" holds what one minibatch showed, and the update moves them a little
towards that: moving ← moving + (1 - momentum) · (observed - moving).

The server does this with its own, current average, not the worker with the one that it last saw.
Then each update is a weighted mean of two values, however many workers there are and however old
what they send is: the average stays between the smallest and the largest value that it began with
or was told, so a variance never becomes negative, and staleness only averages over a slightly
earlier time. If workers sent the *change*, (1 - momentum) · (observed - the average they saw), an
old state would be fed back: with a constant staleness of s that diverges where 1 - momentum is
2 sin(π / (4s + 2)) or more, for a momentum of 0.9 from s = 16 on; it overshoots long before; and
a single slow worker that saw a variance of 1 where there is now one of 0.01 makes it negative.
"""

import math
from collections.abc import Sequence

import numpy as np

from dist_net.optim.rule import Optimizer, UpdateRule, Vector, all_below, require_size
from dist_net.optim.settings import TOO_LARGE, require_fraction

ArrayShapes = tuple[tuple[str, tuple[int, ...]], ...]
"""Name and shape of every array, in the order of the flat vector."""


def start_rule(optimizer: Optimizer, layout: ArrayShapes, momenta: Sequence[float]) -> UpdateRule:
    """Return a fresh float32 rule for a vector of ``layout``, which ends in ``len(momenta)``
    buffers.

    Without any, it is the optimizer's own.
    """
    sizes = [math.prod(shape) for _, shape in layout]
    trained = len(sizes) - len(momenta)
    rule = optimizer.start(sum(sizes[:trained]))
    if not momenta:
        return rule
    return AveragingRule(rule, sum(sizes[:trained]), sizes[trained:], momenta)


class AveragingRule:
    """A rule for the first ``trained_size`` elements, and moving averages for the others.

    ``sizes`` and ``momenta`` are those of the buffers. ``state`` is the inner rule's: vectors of
    ``trained_size`` elements.
    """

    def __init__(
        self, rule: UpdateRule, trained_size: int, sizes: Sequence[int], momenta: Sequence[float]
    ) -> None:
        for momentum in momenta:
            require_fraction("momentum", momentum)
        self.state = rule.state
        self._rule = rule
        self._size = trained_size + sum(sizes)
        self._trained = slice(0, trained_size)
        self._averaged = slice(trained_size, self._size)
        self._rates = np.repeat(1 - np.array(momenta), sizes).astype(np.float32)
        self._scratch = np.empty_like(self._rates)

    def update(
        self,
        weights: Vector,
        gradients: Sequence[Vector],
        out: Vector,
        learning_rates: Sequence[float],
        step: int,
        *,
        if_finite: bool = False,
    ) -> bool:
        """Write into ``out`` the weights after these steps; see ``UpdateRule.update``."""
        require_size(self._size, weights, gradients, out)
        trained, averaged = self._trained, self._averaged
        heads = [gradient[trained] for gradient in gradients]
        latest, following = weights[averaged], out[averaged]
        with np.errstate(all="ignore"):
            for gradient in gradients:
                np.subtract(gradient[averaged], latest, out=self._scratch)
                self._scratch *= self._rates
                np.add(latest, self._scratch, out=following)
                latest = following
        # Before the rule changes its state.
        if if_finite and not all_below(TOO_LARGE, following):
            return False
        return self._rule.update(
            weights[trained], heads, out[trained], learning_rates, step, if_finite=if_finite
        )
