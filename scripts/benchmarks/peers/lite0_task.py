"""EfficientNet-Lite0, and the images that every runtime is measured on.

The weights are those of the extra ``pretrained``; what a runtime needs besides, its peer writes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.data import Dataset
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import write_exported
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.sources.found_model import PretrainedNet
from dist_net.optim import AdamW

Logits = NDArray[np.float32]

ONNX_FILE = "lite0.onnx"
BATCH = "N"
"""The name of its input's free dimension, which each runtime fixes when it loads the file."""

SEED = 0
COARSE_SIDE = 28

TRAINING_BATCH = 32
OPTIMIZER = AdamW(weight_decay=0.01)
LEARNING_RATE = 0.0001
"""Of a net that is trained further, as ``dist-net train FOLDER --fine-tune`` does it."""


def images(count: int) -> NDArray[np.uint8]:
    """Random images (count, 224, 224, 3); the first ones are the same at each call.

    Patches of colours, so that the net sees something: of plain noise it takes everything for one
    class.
    """
    height, width, channels = lite0.INPUT_SHAPE
    side = COARSE_SIDE
    generator = np.random.default_rng(SEED)
    coarse = generator.integers(0, 256, (count, side, side, channels), np.uint8)
    return coarse.repeat(height // side, 1).repeat(width // side, 2)


def dataset() -> Dataset:
    """Random images to train on, of random classes: two minibatches; one image to test on."""
    count = 2 * TRAINING_BATCH
    inputs = images(count)
    targets = np.random.default_rng(SEED).integers(0, lite0.CLASSES, count)
    names = tuple(map(str, range(lite0.CLASSES)))
    return Dataset("images", inputs, targets, inputs[:1], targets[:1], names)


def write_onnx(directory: Path) -> None:
    """Writes the net as ``dist-net export efficientnet-lite0 FILE`` does, for the images."""
    found = PretrainedNet(None).read()
    exported = ExportedModel(lite0.NAME, found, found.weights())
    write_exported(directory / ONNX_FILE, "onnx", exported)
