"""Float32 inference of Darknet-53 gives the answers of float64, on random images."""

from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import compile
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import published
from dist_net.nn import Model, Scope
from dist_net.nn.inference import Inference, prepare
from dist_net.nn.model import INPUTS
from float64 import in_float64

BATCH = 4
IMAGES = 40  # in each test
THREADS = 2
LARGEST_DIFFERENCE = 1e-5  # 3.2e-7 was seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_float32_agrees_with_float64(seed: int) -> None:
    network = DarknetNetwork(published("darknet53").configuration())
    model = Model(network, network.input_shape, input_dtype=np.float32)
    weights = seeded_weights(network, 0)
    single = Inference(model, prepare(model, weights), THREADS, BATCH)
    (double,) = in_float64([network(model.input(BATCH), Scope())])
    given = np.empty((BATCH, *model.input_shape), np.float64)
    reference = compile([double]).bind(
        {INPUTS: given, **model.layout.views(weights.astype(np.float64))}
    )
    for images in random_images(seed, model.input_shape):
        given[...] = images
        (exact,) = reference.run()
        found = single(images)
        np.testing.assert_array_equal(found.argmax(1), exact.argmax(1))
        np.testing.assert_allclose(found, exact, rtol=0, atol=LARGEST_DIFFERENCE)
    single.close()


def random_images(seed: int, shape: tuple[int, ...]) -> Iterator[NDArray[np.float32]]:
    """(BATCH, H, W, 3) in 0..1: coarse patches of colour under noise, each of its own strength."""
    random = np.random.default_rng(seed)
    height, width, channels = shape
    for _ in range(IMAGES // BATCH):
        coarse = random.random((BATCH, 8, 8, channels), np.float32)
        patches = coarse.repeat(height // 8, axis=1).repeat(width // 8, axis=2)
        share = random.random((BATCH, 1, 1, 1), np.float32)
        yield share * patches + (1 - share) * random.random((BATCH, *shape), np.float32)
