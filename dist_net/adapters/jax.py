"""JAX losses as recipes: a tree of parameters is one flat vector."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from numpy.typing import NDArray

from dist_net.data.samples import SampleIndices
from dist_net.errors import RecipeError
from dist_net.ground.vector import Vector
from dist_net.nets.recipes.recipe import Recipe

Tree = Any


class Task:
    """A loss of a tree of parameters, and its samples; they train as a recipe does.

    ``loss(parameters, *arrays)`` returns the mean over a minibatch: its arrays are rows of
    ``arrays``. ``parameters`` are the initial parameters, a tree of float32 arrays.
    ``evaluate(parameters)`` returns what a recipe's ``evaluate`` does. The gradient is compiled,
    for each length of a minibatch. Raise RecipeError for parameters that are not float32. The class
    for modules is in ``dist_net.adapters.pytorch``.
    """

    def __init__(
        self,
        loss: Callable[..., jax.Array],
        parameters: Tree,
        *arrays: NDArray[Any],
        evaluate: Callable[[Tree], Mapping[str, Any]] | None = None,
    ) -> None:
        leaves = jax.tree_util.tree_leaves_with_path(parameters)
        name_of = partial(jax.tree_util.keystr, simple=True, separator="/")
        self._shapes = {name_of(path): np.shape(each) for path, each in leaves}
        if any(np.asarray(each).dtype != np.float32 for _, each in leaves):
            raise RecipeError("parameters of another dtype; expected a tree of float32 arrays")
        flat, self._unravel = ravel_pytree(parameters)
        self._first, self._arrays, self._evaluate = np.array(flat), arrays, evaluate
        self._gradient = jax.jit(
            jax.value_and_grad(lambda weights, *batch: loss(self._unravel(weights), *batch))
        )

    def recipe(self, **settings: Any) -> Recipe:
        """Return the recipe that trains the parameters, with these settings of a ``Recipe``."""
        evaluate = self._evaluate
        return Recipe(
            gradient=self.gradient,
            weights=self._first,
            samples=len(self._arrays[0]),
            evaluate=evaluate and (lambda weights: evaluate(self._unravel(weights))),
            parameters=self._shapes,
            state_dict=lambda weights: self._unravel(weights),
            **settings,
        )

    def gradient(self, weights: Vector, rows: SampleIndices) -> tuple[float, Vector]:
        """Return the summed loss and the mean gradient; see ``Recipe``."""
        mean, gradient = self._gradient(weights, *(each[rows] for each in self._arrays))
        return float(mean) * len(rows), np.asarray(gradient)
