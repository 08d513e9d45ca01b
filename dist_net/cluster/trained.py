"""A trained model from disk: its checkpoint, and the recipe that it was trained with."""

from __future__ import annotations

from pathlib import Path

from dist_net.cluster.run_directory import RunDirectory
from dist_net.errors import RecipeError, UnknownRecipeError
from dist_net.parameter_server.checkpoint import Checkpoint, read_checkpoint
from dist_net.recipe import LoadedRecipe, load_recipe


def load_trained(path: Path) -> tuple[LoadedRecipe, Checkpoint]:
    """The recipe and the checkpoint of the run directory or checkpoint file at ``path``.

    Raises what reading either raises, and CheckpointMismatchError where they do not fit.
    """
    file = RunDirectory(path).checkpoint if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    loaded = _recipe(checkpoint.recipe, RunDirectory(file.parent).recipe)
    checkpoint.require_layout(loaded.recipe.model.layout.shapes)
    return loaded, checkpoint


def _recipe(reference: str, copy: Path) -> LoadedRecipe:
    """The recipe that the checkpoint names, unless it has changed since: then its copy."""
    if not copy.is_file():
        return load_recipe(reference)
    try:
        original = load_recipe(reference)
    except (UnknownRecipeError, RecipeError):
        return load_recipe(str(copy))
    return original if original.source == copy.read_bytes() else load_recipe(str(copy))
