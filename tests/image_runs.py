"""A run on a folder of images, as training leaves it, of a net whose answers are known."""

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from dist_net.data import Dataset
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.images.labels import Calibration
from dist_net.nets.recipes.image_recipe import IMAGES, Base, ImageRecipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.evaluation import BestWeights
from dist_net.training.run.run_options import RunOptions

COLOURS = ("red", "green", "blue")
SIDE = 8
CONFIGURATION = f"""
[net]
height={SIDE}
width={SIDE}
channels=3
[convolutional]
filters=3
size=1
stride=1
activation=linear
[avgpool]
[softmax]
"""
NET = CONFIGURATION.replace(
    "[avgpool]",
    "[convolutional]\nfilters=10\nsize=1\nstride=1\nactivation=linear\n[avgpool]",
)
EYES = Base("darknet", "eyes", (SIDE, SIDE, 3), "crop", NET)
RECIPE = ImageRecipe("colours", EYES, COLOURS, batch_size=1)


def write_run(path: Path, threshold: float = 0.5, times_likelier: float = 4.0) -> Path:
    """A run that says which colour an image has.

    The colour of one that is pure red, green or blue is so many times likelier than the others, and
    of a grey one all are equally likely. Four images of each colour are held out.
    """
    held_out = np.zeros((12, SIDE, SIDE, 3), np.uint8)
    targets = np.arange(12) // 4
    held_out[np.arange(12), ..., targets] = 255
    held_out[:, :, 0] = (255 - 20 * np.arange(12)).reshape(-1, 1, 1)  # each is another one
    directory = RunDirectory(path)
    path.mkdir()
    loaded = RECIPE.loaded()
    dataset = Dataset("colours", held_out, targets, held_out, targets, COLOURS)
    options = RunOptions(IMAGES).on(loaded, dataset)
    directory.begin(options.to_json(), loaded.files)
    settings = options.settings(loaded)
    record = settings.recipe_record | {"image_recipe": RECIPE.to_json()}
    best = BestWeights(directory.best, replace(settings, recipe_record=record))
    best.take(1.0, 0.1, 1, colour_weights(times_likelier))
    write_calibration(path, threshold)
    np.save(directory.held_out, held_out)
    told = {"part": "validation", "of": 12, "names": [], "labels": targets.tolist()}
    directory.held_out.with_suffix(".json").write_text(json.dumps(told))
    return path


def colour_weights(times_likelier: float) -> np.ndarray:
    """Weights by which the features are the mean colours, which the head compares."""
    layout = RECIPE.model.layout
    weights = np.zeros(layout.size, np.float32)
    views = layout.views(weights)
    for name, view in views.items():
        if name.endswith("deviation"):
            view[...] = 1
        elif name == "head/kernel":
            view[...] = np.log(times_likelier) * np.eye(3)
        elif view.ndim == 4:
            view[...] = np.eye(3)
    return weights


def write_calibration(
    path: Path,
    threshold: float,
    temperature: float = 1.0,
    proven: Sequence[tuple[float, float]] = (),
) -> None:
    """What of the run's answers is to be relied on from now on."""
    told = asdict(Calibration(temperature, threshold, 0.95, proven))
    best = RunDirectory(path).best
    checkpoint = read_checkpoint(best)
    record = checkpoint.recipe_record | {"calibration": told}
    write_checkpoint(best, replace(checkpoint, recipe_record=record))
