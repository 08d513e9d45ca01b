"""The origins of recipes: how a run of each is loaded, sent to other hosts, and served.

Checkpoints, options, offers and reports name an origin by its *reference*: a built-in recipe's
name, ``IMAGES``, ``SAVED``, or else the path of a Python file. Only ``origin_of`` reads it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dist_net.data import Dataset
from dist_net.errors import DatasetError, RecipeChangedError, RecipeError
from dist_net.ground.vector import Vector
from dist_net.nets.architecture import (
    Architecture,
    FolderArchitecture,
    LayersArchitecture,
    RecipeArchitecture,
)
from dist_net.nets.recipes.image_recipe import IMAGES, RECIPE_JSON, ImageRecipe
from dist_net.nets.recipes.recipe import (
    LoadedRecipe,
    Recipe,
    RecipeRecord,
    built_in_recipe,
    load_recipe_copy,
    recipe_names,
)
from dist_net.nets.recipes.recipe_files import RECIPE_FILE, sha256
from dist_net.nets.run_directory import RunDirectory
from dist_net.nn import Model
from dist_net.nn.model import SAVED

MANIFEST = "manifest.json"
Digests = Mapping[str, str]
_PYTHON_FILE = re.compile(r"[A-Za-z_]\w{0,99}\.py", re.ASCII)


@dataclass(frozen=True)
class RecipeOrigin:
    """The Python file at the path ``reference``, "" in an offer; other origins are subclasses."""

    reference: str
    is_code: ClassVar[bool] = True
    """Whether loading the recipe executes code that its user must trust."""

    def load(self, directory: RunDirectory, digests: Digests, trusts: bool) -> LoadedRecipe:
        """Load the recipe of a run. Raise as ``load_recipe_copy``, which ``trusts`` is for."""
        return load_recipe_copy(directory.recipe, self.reference, digests, trusts)

    def load_at(self, file: Path, record: RecipeRecord, trusts: bool) -> LoadedRecipe:
        """Load the recipe of a checkpoint: from its ``record``, or else its run's directory."""
        return self.load(RunDirectory(file.parent), record.files, trusts)

    def files_of(self, loaded: LoadedRecipe) -> Mapping[str, bytes]:
        """Return the files that a run directory, or another host, needs to load the recipe."""
        return loaded.files

    def has_files(self, names: Collection[str]) -> bool:
        """Return whether an offer of this origin can consist of these files."""
        is_python = all(map(_PYTHON_FILE.fullmatch, names))
        return not self.reference and RECIPE_FILE in names and is_python

    def architecture_of(self, loaded: LoadedRecipe) -> Architecture:
        """Return how other processes build the recipe's net."""
        path = str(loaded.path.absolute())
        return RecipeArchitecture(path, self.reference, tuple(sorted(loaded.file_digests.items())))


class BuiltInOrigin(RecipeOrigin):
    """A recipe of dist_net, which every host of the same release has."""

    is_code = False

    def load(self, directory: RunDirectory, digests: Digests, trusts: bool) -> LoadedRecipe:
        return built_in_recipe(self.reference)

    def files_of(self, loaded: LoadedRecipe) -> Mapping[str, bytes]:
        return {}

    def has_files(self, names: Collection[str]) -> bool:
        return not names

    def architecture_of(self, loaded: LoadedRecipe) -> Architecture:
        name, files = self.reference, tuple(sorted(loaded.file_digests.items()))
        return RecipeArchitecture(name, name, files)


class ImagesOrigin(RecipeOrigin):
    """A folder of images; its recipe is data."""

    is_code = False

    def load(self, directory: RunDirectory, digests: Digests, trusts: bool) -> LoadedRecipe:
        path = directory.image_recipe
        try:
            content = path.read_bytes()
        except OSError as error:
            raise RecipeChangedError(
                f"{path}: {error.strerror}; expected the run's recipe: copy the whole run directory"
            ) from error
        if digests and digests.get(RECIPE_JSON) != sha256(content):
            raise RecipeChangedError(
                f"{path} has changed since the training; expected the original file. Restore it"
            )
        initial = _initial_weights(directory.initial) if directory.initial.exists() else None
        return ImageRecipe.from_json(content).loaded(initial)

    def load_at(self, file: Path, record: RecipeRecord, trusts: bool) -> LoadedRecipe:
        if record.image_recipe:
            return ImageRecipe.from_json(record.image_recipe).loaded()
        return super().load_at(file, record, trusts)

    def has_files(self, names: Collection[str]) -> bool:
        return RECIPE_JSON in names and {*names} <= {RECIPE_JSON, MANIFEST}

    def architecture_of(self, loaded: LoadedRecipe) -> Architecture:
        recipe = ImageRecipe.from_json(loaded.files[RECIPE_JSON])
        return FolderArchitecture(recipe.as_net().to_json())


class SavedOrigin(RecipeOrigin):
    """A file of ``Model.save``, which has no run."""

    is_code = False

    def load_at(self, file: Path, record: RecipeRecord, trusts: bool) -> LoadedRecipe:
        return saved_recipe(Model.from_json(record.model), file.stem)

    def architecture_of(self, loaded: LoadedRecipe) -> Architecture:
        return LayersArchitecture(loaded.recipe.model.to_json())


def origin_of(reference: str) -> RecipeOrigin:
    """Return the origin that a reference names; any other text is the path of a Python file."""
    if reference in recipe_names():
        return BuiltInOrigin(reference)
    return {IMAGES: ImagesOrigin, SAVED: SavedOrigin}.get(reference, RecipeOrigin)(reference)


def is_image_folder(recipe: str | Path) -> bool:
    """Return whether the recipe that a user names is a folder of images."""
    return str(recipe) not in recipe_names() and Path(recipe).is_dir()


def image_recipe_of(loaded: LoadedRecipe) -> ImageRecipe | None:
    """Return the data from which a recipe of images was built; None of another recipe."""
    is_of_images = isinstance(origin_of(loaded.reference), ImagesOrigin)
    return ImageRecipe.from_json(loaded.files[RECIPE_JSON]) if is_of_images else None


def saved_recipe(model: Model, name: str) -> LoadedRecipe:
    """Return the recipe of a model that was trained without one; it has no dataset."""

    def no_samples() -> Dataset:
        raise DatasetError(
            f"{name} is a saved model, which has no samples of its own; expected those to evaluate "
            f"it on: dist_net.load(FILE).evaluate(inputs, targets)"
        )

    shape, dtype = model.input_shape, model.input_dtype
    recipe = Recipe(model.network, no_samples, shape, model.loss, input_dtype=dtype)
    return LoadedRecipe(SAVED, name, {}, recipe)


def _initial_weights(path: Path) -> Vector:
    try:
        mapped = np.lib.format.open_memmap(path, mode="r")  # cannot exceed the file's length
        if mapped.ndim != 1 or mapped.dtype != np.float32:
            raise ValueError(f"{mapped.dtype}{[*mapped.shape]}")
    except (OSError, ValueError, OverflowError) as error:
        raise RecipeError(
            f"{path}: {error}; expected the run's initial weights, a float32 vector"
        ) from error
    return mapped
