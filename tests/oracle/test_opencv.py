"""Our networks and files against OpenCV's reader of Darknet's formats.

OpenCV folds batch norm as gamma / √(variance + 1e-6), where Darknet divides by √variance + 1e-6:
for the seeded weights, whose variances are near 1, that is 1e-6 of difference.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import evaluate, variable
from dist_net.nets.darknet.configuration import Configuration, write_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import published
from dist_net.nets.darknet.weights import write_weights
from dist_net.nn import Scope
from oracle.test_darknet_program import CROP, thinner

cv2 = pytest.importorskip("cv2", reason="there is no OpenCV here (opencv-python-headless<5)")
if not hasattr(cv2.dnn, "readNetFromDarknet"):
    pytest.skip("this OpenCV reads no Darknet files any more, 4 does", allow_module_level=True)


NAMES = ["darknet", "darknet19", "darknet53", "densenet201", "extraction"]
NAMES += ["resnet18", "resnet50", "resnext50", "resnext101-32x4d", "vgg-16"]
SIZE = 128


def network_for(name: str) -> DarknetNetwork:
    """A published network for small images, as far as OpenCV can have it.

    Each has a quarter of its filters: as wide as they are, Darknet's own program runs them.
    OpenCV adds no maps of different sizes: the shortcuts across a stride are left out.
    """
    net, *layers = published(name).configuration(SIZE).sections
    whole = DarknetNetwork(Configuration((net, *map(thinner, layers)), name))
    kept = [
        layer.section
        for i, layer in enumerate(whole.layers)
        if not (layer.section.kind == "shortcut" and strided(whole, i))
    ]
    return DarknetNetwork(Configuration((net, *kept), name))


def strided(network: DarknetNetwork, index: int) -> bool:
    """Whether the shortcut at ``index`` adds a map of another size."""
    other = network.layers[index + int(network.layers[index].section.options["from"])]
    return other.output_shape[:3] != network.layers[index].output_shape[:3]


def without_crop(configuration: Configuration) -> Configuration:
    """The rest of a network that begins with a crop, which OpenCV does not get right."""
    net, first, *layers = configuration.sections
    if first.kind != "crop":
        return configuration
    size = {"height": str(CROP), "width": str(CROP)}
    return replace(configuration, sections=(replace(net, options=net.options | size), *layers))


@pytest.mark.parametrize("name", NAMES)
def test_a_published_network_answers_as_in_opencv(name: str, tmp_path: Path) -> None:
    network = network_for(name)
    vector = seeded_weights(network, seed=4)
    images = np.random.default_rng(5).random((2, SIZE, SIZE, 3), np.float32)
    x = variable("inputs", images.shape)
    (ours,) = evaluate([network(x, Scope())], inputs=images, **network.layout.views(vector))
    write_configuration(without_crop(network.configuration), tmp_path / "net.cfg")
    write_weights(tmp_path / "net.weights", network, vector)
    theirs = cv2.dnn.readNetFromDarknet(str(tmp_path / "net.cfg"), str(tmp_path / "net.weights"))
    (tmp_path / "net.weights").unlink()
    if name == "vgg-16":
        border = (SIZE - CROP) // 2
        images = images[:, border:-border, border:-border] * 2 - 1
    theirs.setInput(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
    answer = theirs.forward().reshape(ours.shape)
    np.testing.assert_allclose(ours, answer, rtol=1e-3, atol=1e-6)
    assert np.array_equal(np.argsort(-ours)[:, :5], np.argsort(-answer)[:, :5])
