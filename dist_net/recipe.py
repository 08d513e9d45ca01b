"""Recipes: what to train, and with which settings, by name or from a user's Python file.

A recipe file is Python that leaves a ``Recipe`` in a variable called ``recipe``; the built-in
ones in ``dist_net/recipes`` are such files too. Recipes travel by reference: every host imports
its own, and a digest shows whether they are the same.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dist_net.data import DATASETS, Dataset, Progress, dataset_named
from dist_net.errors import DistNetError, RecipeError, UnknownRecipeError
from dist_net.nn import Layer, Model, cross_entropy_of_logits
from dist_net.nn.losses import Loss
from dist_net.nn.parameters import Vector
from dist_net.optim import Adam, Constant, Optimizer, Schedule

BUILT_IN = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """A network, the data that it is trained on, and how.

    ``dataset`` is the name of a dataset or a function that gives one, whose images are uint8 of
    ``input_shape``. The last layer has one output per class. Raises RecipeError for settings that
    cannot be, and what the network raises when its layers do not fit together.
    """

    network: Layer
    dataset: str | Callable[[], Dataset]
    input_shape: tuple[int, ...]
    loss: Loss = cross_entropy_of_logits
    optimizer: Optimizer = Adam()  # noqa: RUF009 - immutable
    learning_rate: float = 0.001
    schedule: Schedule = Constant()  # noqa: RUF009 - immutable
    batch_size: int = 32
    epochs: int = 10

    def __post_init__(self) -> None:
        if isinstance(self.dataset, str) and self.dataset not in DATASETS:
            raise RecipeError(
                f"dataset {self.dataset!r}: expected one of {', '.join(DATASETS)}, or a function "
                f"that returns a Dataset"
            )
        if self.batch_size < 1 or self.epochs < 1 or not self.learning_rate > 0:
            raise RecipeError(
                f"batch_size={self.batch_size}, epochs={self.epochs}, "
                f"learning_rate={self.learning_rate}: expected each to be above 0"
            )

    @cached_property
    def model(self) -> Model:
        """The network with its input and its loss."""
        return Model(self.network, self.input_shape, self.loss)

    def initial_weights(self, seed: int) -> Vector:
        """The first values of parameters and buffers, the same for the same seed."""
        return self.model.layout.initial(np.random.default_rng(seed))

    def load_dataset(self, progress: Progress | None = None) -> Dataset:
        """The dataset, fetched if need be; raises RecipeError if it does not fit the network."""
        if isinstance(self.dataset, str):
            dataset = dataset_named(self.dataset, progress=progress)
        else:
            dataset = _made_by(self.dataset)
        if dataset.image_shape != self.input_shape:
            raise RecipeError(
                f"dataset {dataset.name!r} has images of shape {dataset.image_shape}, the recipe's "
                f"input_shape is {self.input_shape}"
            )
        if len(dataset.class_names) != self.model.classes:
            raise RecipeError(
                f"dataset {dataset.name!r} has {len(dataset.class_names)} classes, the network has "
                f"{self.model.classes} outputs; expected as many"
            )
        return dataset


def _made_by(function: Callable[[], Dataset]) -> Dataset:
    try:
        dataset = function()
    except DistNetError:
        raise
    except Exception as error:  # whatever a user's function may raise
        raise RecipeError(
            f"the recipe's dataset function failed with {type(error).__name__}: {error}"
        ) from error
    if not isinstance(dataset, Dataset):
        raise RecipeError(
            f"the recipe's dataset function returned {type(dataset).__name__}: expected a Dataset"
        )
    return dataset


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where it came from: a built-in name or an absolute path."""

    reference: str
    name: str
    source: bytes
    recipe: Recipe

    def digest(self, dataset: Dataset) -> str:
        """SHA-256, in hexadecimal, of what hosts must have in common to train together.

        That is the recipe's file, the names and shapes of the parameters and buffers, how many
        are buffers and how they move, and the number and the order of the training samples, as
        their labels show it.
        """
        layout = self.recipe.model.layout
        shapes = repr((layout.shapes, layout.momenta, dataset.train_images.shape)).encode()
        labels = np.ascontiguousarray(dataset.train_labels).tobytes()
        return hashlib.sha256(b"\0".join([self.source, shapes, labels])).hexdigest()


def recipe_names() -> list[str]:
    """The names of the built-in recipes."""
    return sorted(path.stem.replace("_", "-") for path in BUILT_IN.glob("[a-z]*.py"))


def load_recipe(reference: str) -> LoadedRecipe:
    """The recipe called ``reference``, or the one in the file at that path.

    Raises UnknownRecipeError where there is none, and RecipeError when the file fails to run or
    leaves no recipe.
    """
    names = recipe_names()
    if reference in names:
        return _load_file(reference, reference, BUILT_IN / f"{reference.replace('-', '_')}.py")
    path = Path(reference)
    if path.suffix != ".py" or not path.is_file():
        raise UnknownRecipeError(
            f"no recipe {reference!r}; expected one of {', '.join(names)}, or the path of a "
            f"Python file that exists"
        )
    return _load_file(str(path.resolve()), path.stem, path)


def _load_file(reference: str, name: str, path: Path) -> LoadedRecipe:
    spec = importlib.util.spec_from_file_location(f"dist_net_recipe_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise RecipeError(f"recipe {path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        source = path.read_bytes()
        spec.loader.exec_module(module)
        recipe = vars(module).get("recipe")
        if not isinstance(recipe, Recipe):
            raise RecipeError(
                f"expected a Recipe in a variable called 'recipe', found {type(recipe).__name__}"
            )
        recipe.model  # noqa: B018 - a network that does not fit together is found here
    except DistNetError as error:
        raise RecipeError(f"recipe {path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        raise RecipeError(f"recipe {path}: {type(error).__name__}: {error}") from error
    return LoadedRecipe(reference, name, source, recipe)
