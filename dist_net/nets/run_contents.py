"""Read a trained run: its recipe, its weights, its calibration and the images it held out.

Loading a run may execute its recipe, so this module also has the user confirm that code.
"""

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from dist_net.data import Dataset
from dist_net.errors import (
    CheckpointError,
    DatasetError,
    RecipeError,
    RunDirectoryError,
    UntrustedRecipeError,
)
from dist_net.ground.checkpoint import Checkpoint, read_checkpoint
from dist_net.ground.command_line import TRUST
from dist_net.ground.printable import printable
from dist_net.ground.vector import Vector
from dist_net.images.labels import Calibration
from dist_net.nets.recipe_origins import image_recipe_of, origin_of
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord
from dist_net.nets.recipes.recipe_files import is_trusted, trust
from dist_net.nets.run_directory import UNREADABLE, RunDirectory, suggest_runs

logger = logging.getLogger(__name__)


def read_run(path: Path, trust_recipe: bool = False) -> tuple[LoadedRecipe, Checkpoint]:
    """Return the recipe and the checkpoint of the run directory or checkpoint file ``path``.

    A recipe is built in, or Python code in the run directory. The code runs only if it has the
    digests in the checkpoint and the user trusts them: see ``load_recipe_copy``. No other code
    runs, whatever the checkpoint contains.

    A checkpoint of ``Model.save`` has its network as data. Raise the errors of reading either, and
    CheckpointError if their layouts differ.
    """
    file = RunDirectory(path).model_file if path.is_dir() else path
    is_run = file.exists() or RunDirectory(path).options.exists()
    if not is_run and (hint := suggest_runs(path)):
        raise CheckpointError(f"no run or checkpoint {path}; {hint}")
    checkpoint = read_checkpoint(file)
    record = RecipeRecord.from_json(checkpoint.recipe_record)
    loaded = origin_of(checkpoint.recipe).load_at(file, record, trust_recipe)
    if record.files and loaded.file_digests != record.files:
        logger.warning("recipe_changed_since_training name=%s checkpoint=%s", loaded.name, file)
    checkpoint.require_layout(loaded.recipe.layout.shapes)
    return loaded, checkpoint


def calibration_of(checkpoint: Checkpoint) -> Calibration | None:
    """Return a checkpoint's calibration, None without. Raise CheckpointError for an invalid one."""
    calibration = RecipeRecord.from_json(checkpoint.recipe_record).calibration
    try:
        return Calibration(**calibration) if calibration else None
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            f"the calibration of the model is invalid: {error}; expected temperature, threshold "
            f"and precision, as training wrote"
        ) from error


def calibrated_weights(loaded: LoadedRecipe, checkpoint: Checkpoint) -> Vector:
    """Return the weights of a checkpoint, such that the probabilities are calibrated."""
    weights, calibration = checkpoint.evaluated_weights, calibration_of(checkpoint)
    recipe = image_recipe_of(loaded)
    if recipe is None or calibration is None:
        return weights
    return recipe.tempered(weights, calibration.temperature)


def read_held_out(path: Path, loaded: LoadedRecipe) -> Dataset | None:
    """Return a run's held-out images, as both parts; None without. Raise RunDirectoryError."""
    file = RunDirectory(path if path.is_dir() else path.parent).held_out
    recipe = image_recipe_of(loaded)
    if recipe is None or not file.exists():
        return None
    try:
        images = np.lib.format.open_memmap(file, mode="r")  # unlike np.load, never of a zip file
        told = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        labels = np.array(told["labels"], np.int64)
        shape = loaded.recipe.input_shape
        if images.dtype != np.uint8 or images.shape[1:] != shape:
            raise ValueError(f"images of {images.dtype}{[*images.shape[1:]]}, not {[*shape]}")
        held_out = Dataset(loaded.name, images, labels, images, labels, recipe.class_names)
        held_out.require_labels(loaded.recipe.targets(held_out).require)
        return held_out
    except (*UNREADABLE, KeyError, OverflowError, DatasetError) as error:
        raise RunDirectoryError(
            f"{file}: {error}; expected the held-out images of the training: copy the run again"
        ) from error


def read_out_of_fold(path: Path) -> tuple[NDArray[np.intp], NDArray[np.intp], float] | None:
    """Return labels, answers out of fold, and their loss; None if a run keeps none.

    A head is trained on every image of its folder, so it is judged by heads that were not.
    """
    file = RunDirectory(path if path.is_dir() else path.parent).held_out.with_suffix(".json")
    try:
        told = json.loads(file.read_text(encoding="utf-8")).get("out_of_fold")
        if told is None:
            return None
        labels, answers = (np.array(told[name], np.intp) for name in ("labels", "answers"))
        if not (0 < labels.size == answers.size):
            raise ValueError(f"{answers.size} answers for {labels.size} labels")
        return labels, answers, float(told["loss"])
    except FileNotFoundError:
        return None
    except (*UNREADABLE, KeyError, AttributeError, OverflowError) as error:
        raise RunDirectoryError(
            f"{file}: {error}; expected the answers that training kept: copy the run again"
        ) from error


def recipe_code_digests(path: Path) -> Mapping[str, str]:
    """Return the digests by name of Python files that loading a run executes; none if unreadable"""
    try:
        file = RunDirectory(path).model_file if path.is_dir() else path
        with safe_open(file, framework="numpy") as opened:
            metadata = opened.metadata() or {}
        reference = str(json.loads(metadata["recipe"]))
        record = RecipeRecord.from_json(json.loads(metadata["recipe_record"]))
    except (OSError, ValueError, KeyError, RecursionError, SafetensorError, RecipeError):
        return {}
    return record.files if origin_of(reference).is_code else {}


def load_run_recipe(directory: RunDirectory, trust_recipe: bool = False) -> LoadedRecipe:
    """Load the recipe of a run in one of its processes. Raise as ``load_recipe_copy`` does."""
    reference, digests = directory.recipe_of_options()
    return origin_of(reference).load(directory, digests, trust_recipe)


def confirm_recipe(model: str | Path, is_confirmed: bool) -> None:
    """Have the user confirm the Python files that loading ``model`` executes, if it is a run."""
    path = Path(model)
    if digests := recipe_code_digests(path):
        directory = path if path.is_dir() else path.parent
        confirm_code(f"the recipe of {path}", directory, digests, is_confirmed)


def confirm_code(
    what: str, directory: Path, digests: Mapping[str, str], is_confirmed: bool
) -> None:
    """Have the user confirm Python files by name and SHA-256, and record the answer.

    ``is_confirmed``: --trust-recipe was given. Raise UntrustedRecipeError if the user refuses.
    """
    if is_trusted(digests):
        return
    if not is_confirmed:
        files = [f"{directory / name}: SHA-256 {digest}" for name, digest in digests.items()]
        lines = [printable(line) for line in files]
        if sys.stdin is None or not sys.stdin.isatty():
            raise UntrustedRecipeError(
                f"{what} is Python code that would run on this host ({'; '.join(lines)}), and "
                f"stdin is not a terminal; if you trust its author, pass {TRUST}"
            )
        print(f"{what} is Python code:", *lines, sep="\n    ", file=sys.stderr)
        print("Run it on this host? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise UntrustedRecipeError(f"{what} is not trusted; nothing was run")
    trust(digests)
