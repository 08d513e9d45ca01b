"""The functions of a recipe without a network: calls, checks of results, layout and samples."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from dist_net.autodiff.arrays import integers
from dist_net.data import Dataset
from dist_net.data.samples import SampleIndices
from dist_net.errors import DistNetError, RecipeError
from dist_net.ground.shared_facts import fingerprint
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe_files import place_in_recipe, sha256
from dist_net.nn import zeros
from dist_net.nn.losses import TargetMeaning
from dist_net.nn.parameters import Buffer, Layout, Parameter

ArrayShape = tuple[int, ...]
GradientOfRows = Callable[[Vector, SampleIndices], tuple[float, Vector]]
EvaluateWeights = Callable[[Vector], Mapping[str, float | None]]
StateOfWeights = Callable[[Vector], Any]


def called(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a recipe's own function; raise its DistNetError, or RecipeError."""
    try:
        return function(*arguments)
    except Exception as error:  # a user's function may raise anything
        place = place_in_recipe(error)
        where = f" (at {place})" if place else ""
        if isinstance(error, DistNetError):
            error.args = (f"{error}{where}",)
            raise
        raise RecipeError(
            f"the recipe's {name} function failed with {type(error).__name__}: {error}{where}"
        ) from error


@dataclass(frozen=True, eq=False)
class OwnGradient:
    """A gradient function of the caller's own, in the place of a ``Model``; see ``Recipe``.

    Hosts that train together compare its results at the initial ``weights`` for these ``rows``.
    """

    gradient: GradientOfRows | None
    evaluate: EvaluateWeights | None
    layout: Layout
    weights: Vector
    rows: SampleIndices
    digest: str = ""
    _one_call: Lock = field(default_factory=Lock)

    def at(self, weights: Vector, rows: SampleIndices) -> tuple[float, Vector]:
        """Return the summed loss and the mean gradient of the samples; raise RecipeError."""
        if self.gradient is None:
            raise RecipeError(
                "the recipe has no gradient function, which workers and replay call; expected one, "
                "or --workers 0 and programs that take part by dist_net.join(token)"
            )
        weights = weights.view()
        weights.flags.writeable = False
        with self._one_call:  # the functions may use their memory again
            result = called("gradient", self.gradient, weights, rows)
            loss_sum, gradient = checked_gradient(result, self.layout.size)
            return loss_sum, gradient.copy()

    def evaluation_at(self, weights: Vector) -> tuple[float | None, float | None]:
        """Return loss and accuracy by ``evaluate``; None without it. Raise RecipeError."""
        if self.evaluate is None:
            return None, None
        with self._one_call:
            return checked_evaluation(called("evaluate", self.evaluate, weights))

    @cached_property
    def facts(self) -> tuple[str, ...]:
        """The facts that all hosts share: initial weights, and their gradient or the digest."""
        facts = [f"weights {fingerprint(self.weights)}"]
        if self.digest:
            facts.append(f"digest {sha256(self.digest.encode())}")
        elif self.gradient is not None:
            facts.append(f"gradient {fingerprint(self.at(self.weights, self.rows)[1])}")
        return tuple(facts)

    def targets(self, *_: object) -> TargetMeaning:
        """Return that targets mean numbers: only the function knows them."""
        return TargetMeaning()

    def require_batch_size(self, batch_size: int) -> None:
        """Accept minibatches of any size."""


def checked_gradient(result: Any, size: int) -> tuple[float, Vector]:
    """Return a summed loss and a gradient of ``size`` weights, or raise RecipeError."""
    try:
        loss_sum, gradient = result
        gradient = np.asarray(gradient)
        loss_sum = float(loss_sum)
    except (TypeError, ValueError) as error:
        raise RecipeError(
            f"{result!r:.80} for a minibatch: expected its (loss_sum, gradient), a number and an "
            f"array"
        ) from error
    if gradient.shape != (size,) or gradient.dtype != np.float32:
        raise RecipeError(
            f"a gradient of {gradient.dtype}{[*gradient.shape]}: expected float32[{size}], as long "
            f"as its weights"
        )
    return loss_sum, gradient


def checked_evaluation(result: Any) -> tuple[float, float | None]:
    """Return loss and accuracy of an evaluation, or raise RecipeError."""
    try:
        loss, accuracy = result["test_loss"], result.get("test_accuracy")
        return float(loss), None if accuracy is None else float(accuracy)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RecipeError(
            f"the recipe's evaluate function returned {result!r:.80}: expected a dict with "
            f"'test_loss' and, if there are classes, 'test_accuracy'"
        ) from error


def layout_of(
    weights: Vector | None,
    parameters: Mapping[str, ArrayShape] | None,
    buffers: Mapping[str, ArrayShape],
) -> Layout:
    """Return the layout of weights; raise RecipeError unless they are as long as it.

    A gradient function computes a buffer's next value, which replaces it: the momentum is 0.
    """
    if (
        not isinstance(weights, np.ndarray)
        or weights.dtype != np.float32
        or weights.ndim != 1
        or not weights.size
        or not np.isfinite(weights).all()
    ):
        raise RecipeError(
            f"weights={weights!r:.80}: expected the initial weights of the gradient function, a "
            f"flat vector of finite float32"
        )
    if parameters is None:
        parameters = {"weights": weights.shape}
    layout = Layout(
        {name: Parameter(name, integers(name, shape), zeros) for name, shape in parameters.items()},
        {name: Buffer(name, integers(name, shape), zeros, 0.0) for name, shape in buffers.items()},
    )
    if layout.size != weights.size:
        raise RecipeError(
            f"{weights.size} weights for parameters and buffers of {layout.size} elements: "
            f"expected as many"
        )
    return layout


def indices_as_dataset(samples: int) -> Dataset:
    """Return a dataset of the samples' indices, which a gradient function reads."""
    rows = np.arange(samples)
    targets = np.broadcast_to(np.float32(0), (samples,))
    return Dataset("rows", rows, targets, rows[:1], targets[:1])
