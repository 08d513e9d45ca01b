"""Write the confusion matrix, the mistakes and the first weights of a classifier for the page."""

import json
import math
from base64 import b64encode
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dist_net.data import Dataset
from dist_net.data.samples import samples_of
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.ground.vector import Vector
from dist_net.images.fitting import is_image_shape
from dist_net.nets.run_directory import RunDirectory
from dist_net.nn import Model, Predictor
from dist_net.nn.inference import softmax
from dist_net.nn.losses import cross_entropy_of_probabilities, of_label
from dist_net.training.run.evaluation import Evaluation, most_confident_mistakes
from dist_net.training.run.plots import MAX_CLASSES_NAMED

MISTAKES_SHOWN = 18
MISTAKES_JUDGED, JUDGED_BYTES = 4096, 2**26
"""The first wrong answers, of which the most confident are shown, and the size of their images."""

SIDE = 64
FILTERS_SHOWN, FILTERS_PER_ROW = 32, 8
SMALLEST_FILTER = 3


def write_outcome(
    directory: RunDirectory, samples: int, model: Model, dataset: Dataset, evaluation: Evaluation
) -> None:
    """Write the outcome of the evaluation after ``samples`` as a JSON line of at most about 0.9 MB.

    Raise RunDirectoryError and CheckpointError.
    """
    weights = read_checkpoint(directory.model_file).evaluated_weights
    names = dataset.class_names
    is_readable = len(names) <= MAX_CLASSES_NAMED
    outcome = {
        "kind": "outcome",
        "samples": samples,
        "classes": names if is_readable else (),
        "confusion": evaluation.confusion.tolist() if is_readable else (),
        "mistakes": _mistakes(model, weights, dataset, evaluation),
        "filters": _filters(model, weights),
    }
    directory.write(directory.outcome, json.dumps(outcome) + "\n")


def _mistakes(
    model: Model, weights: Vector, dataset: Dataset, evaluation: Evaluation
) -> list[dict[str, Any]]:
    inputs, labels = samples_of(dataset.test_inputs), evaluation.labels
    if not is_image_shape(inputs.shape) or len(labels) != len(inputs):  # some have no label
        return []
    image_bytes = math.prod(inputs.shape) * inputs.dtype.itemsize
    judged = min(MISTAKES_JUDGED, JUDGED_BYTES // image_bytes)
    wrong = np.flatnonzero(labels != evaluation.answers)[:judged]
    images = np.empty((len(wrong), *inputs.shape), inputs.dtype)
    with dataset.turn:
        inputs.read(wrong, images)
    outputs = Predictor(model, weights)(images)
    is_probable = of_label(model.loss) is cross_entropy_of_probabilities
    probabilities = outputs if is_probable else softmax(outputs)
    chosen = most_confident_mistakes(probabilities, labels[wrong])[:MISTAKES_SHOWN]
    return [
        {
            "label": dataset.class_names[labels[wrong[row]]],
            "answer": dataset.class_names[probabilities[row].argmax()],
            "probability": round(float(probabilities[row].max()), 4),
            "image": _data_url(pixels),
        }
        for row, pixels in zip(chosen.tolist(), _pixels(images[chosen]), strict=True)
    ]


def _pixels(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Return images as uint8; numbers from their least to their greatest are black to white."""
    if images.dtype == np.uint8 or not images.size:
        return images
    low, high = float(images.min()), float(images.max())
    return (255 * (images.astype(np.float32) - low) / (high - low or 1.0)).astype(np.uint8)


def _filters(model: Model, weights: Vector) -> str:
    """Return the weights of the first layer as a picture, grey where they are 0, or ""."""
    first = next(iter(model.layout.views(weights).values()), np.empty(0, np.float32))
    shape = model.input_shape if first.ndim == 2 else first.shape[:-1]  # of a dense layer, or not
    if not is_image_shape(shape) or math.prod(shape) * first.shape[-1] != first.size:
        return ""
    if not all(SMALLEST_FILTER <= side <= SIDE for side in shape[:2]):
        return ""
    filters = first.reshape(*shape[:2], -1, first.shape[-1], copy=False)[..., :FILTERS_SHOWN]
    scaled = filters / np.abs(filters).max((0, 1, 2), initial=np.float32(1e-9))
    pixels = (127.5 * (1 + scaled)).astype(np.uint8)
    missing = -pixels.shape[-1] % FILTERS_PER_ROW
    pixels = np.pad(pixels, ((0, 1), (0, 1), (0, 0), (0, missing)), constant_values=255)
    height, width, channels = pixels.shape[:3]
    parts = height, width, channels, -1, FILTERS_PER_ROW
    rows = np.ascontiguousarray(pixels.reshape(parts, copy=False).transpose(3, 0, 4, 1, 2))
    grid = rows.reshape(-1, FILTERS_PER_ROW * width, channels, copy=False)
    return _data_url(grid, max(grid.shape))


def _data_url(pixels: NDArray[np.uint8], side: int = SIDE) -> str:
    return f"data:image/png;base64,{b64encode(png_of(pixels, side)).decode()}"


def png_of(pixels: NDArray[np.uint8], side: int) -> bytes:
    """Return a PNG file of an image, (H, W) or (H, W, C), smaller if it is larger than ``side``."""
    image = Image.fromarray(pixels.squeeze())
    image.thumbnail((side, side))
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
