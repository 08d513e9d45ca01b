"""Recipes: what to train, and with which settings, by name or from a user's Python file.

A recipe file is Python that leaves a ``Recipe`` in a variable called ``recipe``, and may import
modules that lie beside it; those in ``dist_net/recipes/built_in`` are such files too. Recipes
travel by reference: every host runs its own, and a digest shows whether they are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np

from dist_net.data import DATASETS, Dataset, Progress, dataset_named
from dist_net.errors import (
    DistNetError,
    RecipeChangedError,
    RecipeError,
    UnknownRecipeError,
    UntrustedRecipeError,
)
from dist_net.nn import Layer, Model, cross_entropy_of_logits
from dist_net.nn.losses import Loss
from dist_net.optim import Adam, Constant, Optimizer, Schedule
from dist_net.pictures.decoding import FITTINGS
from dist_net.recipes.recipe_files import RecipeFiles, place_in_recipe, read_any, reader_of, sha256
from dist_net.release import release
from dist_net.spelling import did_you_mean
from dist_net.vector import Vector

BUILT_IN = Path(__file__).parent / "built_in"


@dataclass(frozen=True)
class Recipe:
    """A network, the data that it is trained on, and how.

    ``dataset`` is the name of a dataset or a function that gives one, whose images are uint8 of
    ``input_shape``. The last layer has one output per class. ``fitting`` says how the training
    pictures were made to fit, and so how those will be that the net is asked about: see
    ``dist_net.fit_picture``. Without it, it is "pad" for a dataset with a name, and "exact" for
    one of a function, which alone knows what it does. Raises RecipeError for settings that
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
    fitting: str = ""

    def __post_init__(self) -> None:
        if not self.fitting:
            fitting = "pad" if isinstance(self.dataset, str) else "exact"
            object.__setattr__(self, "fitting", fitting)
        if self.fitting not in FITTINGS:
            raise RecipeError(f"fitting={self.fitting!r}: expected one of {', '.join(FITTINGS)}")
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
        self.model  # noqa: B018 - a network that does not fit together is found here

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
        with redirect_stdout(sys.stderr):
            dataset = function()
    except DistNetError as error:
        error.args = (f"{error}{_at_place(error)}",)
        raise
    except Exception as error:  # whatever a user's function may raise
        raise RecipeError(
            f"the recipe's dataset function failed with {type(error).__name__}: {error}"
            f"{_at_place(error)}"
        ) from error
    if not isinstance(dataset, Dataset):
        raise RecipeError(
            f"the recipe's dataset function returned {type(dataset).__name__}: expected a Dataset"
        )
    return dataset


def _at_place(error: Exception) -> str:
    place = place_in_recipe(error)
    return f" (at {place})" if place else ""


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe and where it came from: a built-in name or an absolute path.

    ``files`` are its own, RECIPE_FILE, and those beside it that it has imported so far, by name.
    ``path`` is the file that was run: the one at ``reference``, or a run directory's copy of it.
    """

    reference: str
    name: str
    files: Mapping[str, bytes]
    recipe: Recipe
    path: Path = Path()

    @property
    def is_built_in(self) -> bool:
        """Whether it is a part of dist_net, and not code that a run carries."""
        return self.reference in recipe_names()

    @property
    def file_digests(self) -> dict[str, str]:
        """SHA-256, in hexadecimal, of each of its files."""
        return {name: sha256(content) for name, content in sorted(self.files.items())}

    def digest(self, dataset: Dataset) -> str:
        """What hosts must have in common to train together, in three parts with a name each.

        ``release X; recipe Y; data Z``: the release of dist_net; SHA-256 of the recipe's files, the
        names and shapes of the parameters and buffers, how many are buffers and how they move;
        and that of the training samples, see ``Dataset.digest``.
        """
        layout = self.recipe.model.layout
        shapes = repr((layout.shapes, layout.momenta)).encode()
        files = [content for _, content in sorted(self.files.items())]
        recipe = sha256(b"\0".join([*files, shapes]))
        return f"release {release()}; recipe {recipe}; data {dataset.digest()}"


@dataclass(frozen=True)
class RecipeRecord:
    """What a run keeps of its recipe with the weights, beside its reference.

    ``files`` are its digests (see ``LoadedRecipe.file_digests``), ``class_names`` the dataset's.
    Of a run of an earlier release, there may be nothing.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    class_names: tuple[str, ...] = ()
    fitting: str = ""

    @classmethod
    def of(cls, loaded: LoadedRecipe, dataset: Dataset) -> Self:
        """What is to be kept of this recipe."""
        return cls(loaded.file_digests, dataset.class_names, loaded.recipe.fitting)

    def to_json(self) -> dict[str, Any]:
        """The record as a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: object) -> Self:
        """What ``to_json`` gave; raises RecipeError for anything else."""
        if not isinstance(values, dict):
            raise RecipeError(f"a run's record of its recipe is {values!r:.80}; expected an object")
        files, names = values.get("files", {}), values.get("class_names", [])
        fitting = values.get("fitting", "")
        if not (
            isinstance(files, dict)
            and isinstance(names, list)
            and all(isinstance(each, str) for each in (*files.values(), *names))
            and fitting in ("", *FITTINGS)
        ):
            raise RecipeError(
                f"a run's record of its recipe is {str(values)[:80]!r}; expected digests of "
                f"files, the names of classes, and a fitting: {', '.join(FITTINGS)}"
            )
        return cls(files, tuple(names), fitting)


def recipe_names() -> list[str]:
    """The names of the built-in recipes."""
    return sorted(path.stem.replace("_", "-") for path in BUILT_IN.glob("[a-z]*.py"))


def load_recipe(reference: str) -> LoadedRecipe:
    """The recipe called ``reference``, or the one in the file at that path, which is run.

    Raises UnknownRecipeError where there is none, and RecipeError when the file fails to run or
    leaves no recipe.
    """
    names = recipe_names()
    path = Path(reference)
    if reference in names:
        path, name = BUILT_IN / f"{reference.replace('-', '_')}.py", reference
    elif path.suffix == ".py" and path.is_file():
        path = path.resolve()
        reference, name = str(path), path.stem
    else:
        expected = f"expected one of {', '.join(names)}, or the path of a Python file that exists"
        hint = did_you_mean(reference, names) or expected
        raise UnknownRecipeError(f"no recipe {reference!r}; {hint}")
    return _run(reference, name, path, RecipeFiles(path, path, read_any))


def load_recipe_copy(
    path: Path, reference: str, digests: Mapping[str, str], is_trusted: bool = False
) -> LoadedRecipe:
    """The recipe in the file ``path``, which is a copy of the one that ``reference`` names.

    Nothing is run but it and files beside it that have the ``digests`` that ``file_digests`` gave
    for the original. It is told that it stands where that did, so that it finds its data.

    Raises RecipeChangedError where a file is missing or another, UntrustedRecipeError where
    somebody else may have written it, unless it ``is_trusted``, and RecipeError if it fails.
    Without ``digests`` only what ``is_trusted`` is run.
    """
    files = RecipeFiles(path, Path(reference), reader_of(path, digests, is_trusted))
    return _run(reference, Path(reference).stem, path, files)


def _run(reference: str, name: str, path: Path, files: RecipeFiles) -> LoadedRecipe:
    try:
        with redirect_stdout(sys.stderr):
            recipe = files.run().get("recipe")
            if not isinstance(recipe, Recipe):
                raise RecipeError(
                    f"expected a Recipe in a variable called 'recipe', found "
                    f"{type(recipe).__name__}"
                )
    except (RecipeChangedError, UntrustedRecipeError):
        raise
    except DistNetError as error:
        raise RecipeError(f"recipe {place_in_recipe(error) or path}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's file may raise
        place = place_in_recipe(error) or path
        raise RecipeError(f"recipe {place}: {type(error).__name__}: {error}") from error
    return LoadedRecipe(reference, name, files.contents, recipe, path)
