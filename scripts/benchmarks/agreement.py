"""Whether float32 inference says what float64 says: Darknet-53 on random pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import compile
from dist_net.autodiff.compiler.float64 import in_float64
from dist_net.cluster.entry import available_cores
from dist_net.darknet.network import DarknetNetwork
from dist_net.darknet.published import published
from dist_net.nn import Model, Scope
from dist_net.nn.inference import Inference, prepare
from dist_net.nn.model import INPUTS

SEED = 0
BATCH = 4


def measure(_: bool, say: Callable[[str], None], images: int = 1000) -> dict[str, Any]:
    """``images top1_agreement largest_difference`` of probabilities, with seeded weights."""
    network = DarknetNetwork(published("darknet53").configuration())
    model = Model(network, network.input_shape, input_dtype=np.float32)
    weights = seeded_weights(network, SEED)
    single = Inference(model, prepare(model, weights), available_cores(), BATCH)
    (double,) = in_float64([network(model.input(BATCH), Scope())])
    given = np.empty((BATCH, *model.input_shape), np.float64)
    reference = compile([double]).bind(
        {INPUTS: given, **model.layout.views(weights.astype(np.float64))}
    )
    random = np.random.default_rng(SEED)
    agreed, largest = 0, 0.0
    for start in range(0, images, BATCH):
        pictures = random_pictures(random, model.input_shape)
        given[...] = pictures
        (theirs,) = reference.run()
        ours = single(pictures)
        agreed += int((ours.argmax(1) == theirs.argmax(1)).sum())
        largest = max(largest, float(np.abs(np.subtract(ours, theirs)).max()))
        if start % 100 == 0:
            say(f"{start} of {images} pictures, probabilities at most {largest:.1e} apart")
    single.close()
    return {"images": images, "top1_agreement": agreed / images, "largest_difference": largest}


def random_pictures(random: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """(BATCH, H, W, 3) in 0..1: coarse patches of colour under noise, each of its own strength."""
    height, width, channels = shape
    coarse = random.random((BATCH, 8, 8, channels), np.float32)
    patches = coarse.repeat(height // 8, axis=1).repeat(width // 8, axis=2)
    share = random.random((BATCH, 1, 1, 1), np.float32)
    return share * patches + (1 - share) * random.random((BATCH, *shape), np.float32)
