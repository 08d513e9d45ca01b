"""Descriptions of networks: one of five kinds, stored in files and messages as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from dist_net.errors import ModelLoadError
from dist_net.ground.json_records import record_from_json

if TYPE_CHECKING:
    from dist_net.nn import Model

# ``build`` imports lazily: clients read descriptions of models without building them.


@dataclass(frozen=True)
class DarknetArchitecture:
    """A Darknet net; ``configuration`` is the text of its .cfg file."""

    configuration: str

    def build(self, name: str, trust_recipe: bool = False) -> Model:
        """Return the model. Raise ModelFileError, whose message names ``name``."""
        from dist_net.nets.darknet import DarknetNetwork, parse_configuration

        return DarknetNetwork(parse_configuration(self.configuration, name)).model


@dataclass(frozen=True)
class PublishedArchitecture:
    """A net that dist_net builds by name: EfficientNet-Lite0."""

    published: str

    def build(self, name: str, trust_recipe: bool = False) -> Model:
        """Return the model. Raise ModelLoadError for the name of another release."""
        from dist_net.nets import efficientnet_lite0

        if self.published != efficientnet_lite0.NAME:
            raise ModelLoadError(
                f"this release of dist_net has no net {self.published}; install the same release "
                f"on both hosts"
            )
        return efficientnet_lite0.model()


@dataclass(frozen=True)
class FolderArchitecture:
    """A net that was trained on a folder of images; ``recipe`` is JSON, see ``ImageRecipe``."""

    recipe: str

    def build(self, name: str, trust_recipe: bool = False) -> Model:
        """Return the model. Raise RecipeError for other JSON."""
        from dist_net.nets.recipes.image_recipe import ImageRecipe

        return ImageRecipe.from_json(self.recipe).model


@dataclass(frozen=True)
class LayersArchitecture:
    """A net of the layers of ``dist_net.nn``; ``model`` is JSON, see ``Model.to_json``."""

    model: str

    def build(self, name: str, trust_recipe: bool = False) -> Model:
        """Return the model. Raise ModelFileError for other JSON, or a layer of the user's own."""
        from dist_net.nn import Model

        return Model.from_json(self.model)


@dataclass(frozen=True)
class OnnxArchitecture:
    """A net that ONNX Runtime computes from a file; ``rows_alone``: see ``ForeignModel``."""

    rows_alone: bool = False


@dataclass(frozen=True)
class RecipeArchitecture:
    """The net of a recipe: ``path`` is the name of a built-in recipe, or a run's Python file.

    ``original`` is the file that was copied into the run. ``files`` are the names and SHA-256
    digests, sorted, that the recipe's files must have on every host.
    """

    path: str
    original: str
    files: tuple[tuple[str, str], ...]

    def build(self, name: str, trust_recipe: bool = False) -> Model:
        """Return the model. Raise ModelLoadError, and see ``load_recipe_copy``."""
        from dist_net.nets.recipes.recipe import built_in_recipe, load_recipe_copy, recipe_names
        from dist_net.nets.recipes.recipe_files import RECIPE_FILE

        digests = dict(self.files)
        if self.path not in recipe_names():
            if Path(self.path).name != RECIPE_FILE or RECIPE_FILE not in digests:
                raise ModelLoadError(
                    f"the recipe of {name} is {self.path[-80:]!r} with {len(digests)} digests; "
                    f"expected a built-in recipe, or a run's {RECIPE_FILE} with its digest"
                )
            path = Path(self.path)
            return load_recipe_copy(path, self.original, digests, trust_recipe).recipe.model
        loaded = built_in_recipe(self.path)
        if loaded.file_digests != digests:
            raise ModelLoadError(
                f"this host's recipe {self.path} differs from the recipe of {name}; install the "
                f"same release of dist_net on both hosts"
            )
        return loaded.recipe.model


Architecture = (
    DarknetArchitecture
    | PublishedArchitecture
    | FolderArchitecture
    | LayersArchitecture
    | OnnxArchitecture
    | RecipeArchitecture
)

_KINDS: dict[str, type[Architecture]] = {
    each.__name__.removesuffix("Architecture").lower(): each for each in get_args(Architecture)
}


def architecture_to_json(architecture: Architecture) -> dict[str, Any]:
    """Return a JSON object with the key ``kind`` and the fields of that kind."""
    (kind,) = [name for name, each in _KINDS.items() if each is type(architecture)]
    return {"kind": kind, **asdict(architecture)}


def architecture_from_json(values: dict[str, Any]) -> Architecture:
    """Return the architecture from its JSON object. Raise ValueError, TypeError or KeyError."""
    fields = dict(values)
    return record_from_json(_KINDS[fields.pop("kind")], fields)
