"""A trained model from disk: its checkpoint, and the recipe that it was trained with."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from dist_net.models.run_directory import RunDirectory
from dist_net.models.run_options import RunOptions
from dist_net.parameter_server.checkpoint import Checkpoint, read_checkpoint
from dist_net.recipes.recipe import (
    LoadedRecipe,
    RecipeRecord,
    load_recipe,
    load_recipe_copy,
    recipe_names,
)

logger = logging.getLogger(__name__)


def load_trained(path: Path, trust_recipe: bool = False) -> tuple[LoadedRecipe, Checkpoint]:
    """The recipe and the checkpoint of the run directory or checkpoint file at ``path``.

    A recipe is either built in, or Python that the run directory carries: that is run, if it is
    what the checkpoint has the digests of, and if only this user can have written it or it is
    trusted. Nothing outside the run directory is run, whatever the checkpoint says.

    Raises what reading either raises, and CheckpointMismatchError where they do not fit.
    """
    file = RunDirectory(path).checkpoint if path.is_dir() else path
    checkpoint = read_checkpoint(file)
    record = RecipeRecord.from_json(checkpoint.recipe_record)
    loaded = _recipe(RunDirectory(file.parent), checkpoint.recipe, record.files, trust_recipe)
    if record.files and loaded.file_digests != record.files:
        logger.warning(
            "the recipe %s is another in this release of dist_net than when %s was trained",
            loaded.name,
            file,
        )
    checkpoint.require_layout(loaded.recipe.model.layout.shapes)
    return loaded, checkpoint


def recipe_of_run(directory: RunDirectory) -> LoadedRecipe:
    """The recipe of a run that was just begun, for the run's own processes; raises RecipeError."""
    options = RunOptions.from_json(directory.options.read_text())
    return _recipe(directory, options.recipe, options.recipe_files, trust_recipe=True)


def _recipe(
    directory: RunDirectory, reference: str, digests: Mapping[str, str], trust_recipe: bool
) -> LoadedRecipe:
    if reference in recipe_names():
        return load_recipe(reference)
    return load_recipe_copy(directory.recipe, reference, digests, trust_recipe)
