"""Our networks and files against the Darknet program itself, on seeded random weights."""

import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import Expression, evaluate, reshape, variable
from dist_net.data import dataset_named
from dist_net.ground.vector import Vector
from dist_net.images.decoding import load_image
from dist_net.images.fitting import letterbox
from dist_net.nets.darknet.configuration import Configuration, Section, parse_configuration
from dist_net.nets.darknet.darknet_layers import ACTIVATIONS
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import PUBLISHED, published
from dist_net.nets.darknet.weights import read_weights
from dist_net.nets.recipes.recipe import Recipe
from dist_net.nn import Lambda, Rescale, Scope, Sequential
from dist_net.optim import Adam
from dist_net.training.run.fit import SingleProcess

HEIGHT, WIDTH = 9, 11
LAST_DIGIT = 1e-4  # of what the program prints, 0.01 %; half of it, and as much for rounding
NET = f"[net]\nheight={HEIGHT}\nwidth={WIDTH}\nchannels=3\n"
CONV = "[convolutional]\nfilters=4\nsize=3\npad=1\nactivation=linear\n"
STRIDED = CONV + "stride=2\n"
# The program prints six digits after the point once its numbers are a thousand times as large.
MAGNIFY = "[shortcut]\nfrom=-1\nalpha=500\nbeta=500\n"

Values = NDArray[np.float32]
Finder = Callable[[str], Path]


class Program(Protocol):
    def predict(
        self, network: DarknetNetwork, vector: Vector, images: list[Path], top: int
    ) -> list[dict[int, float]]: ...

    def predict_by_file(
        self, network: DarknetNetwork, weights: Path, images: list[Path], top: int
    ) -> list[dict[int, float]]: ...


def outputs(network: DarknetNetwork, vector: Vector, images: Values) -> Values:
    """(N, classes), by a plan without any rewriting for inference."""
    x = variable("inputs", images.shape)
    return evaluate([network(x, Scope())], inputs=images, **network.layout.views(vector))[0]


def layer_cases() -> dict[str, str]:
    """Each layer with each option that changes what it computes."""
    cases = {
        "batch norm": CONV + "batch_normalize=1\n",
        "stride": STRIDED,
        "no padding": "[convolutional]\nfilters=4\nsize=3\nactivation=linear\n",
        "padding": "[convolutional]\nfilters=4\nsize=3\npadding=2\nactivation=linear\n",
        "even size": "[convolutional]\nfilters=4\nsize=4\npad=1\nactivation=linear\n",
        "strided on even": "[maxpool]\nsize=2\nstride=1\npadding=0\n" + STRIDED,
        "groups": f"{CONV}[convolutional]\nfilters=6\nsize=3\ngroups=2\npad=1\nactivation=linear\n",
        "avgpool": "[avgpool]\n",
        "classes after the mean": CONV
        + "[avgpool]\n[convolutional]\nfilters=5\nactivation=linear\n",
        "connected": CONV + "[connected]\noutput=5\nactivation=linear\n",
        "connected batch norm": CONV
        + "[connected]\nbatch_normalize=1\noutput=5\nactivation=leaky\n",
        "dropout": CONV + "[dropout]\nprobability=.5\n",
        "cost": CONV + "[cost]\ntype=sse\n",
        "crop": "[crop]\ncrop_height=4\ncrop_width=5\nflip=1\n",
        "crop, not spread": "[crop]\ncrop_height=4\ncrop_width=5\nnoadjust=1\n",
        "softmax": "[avgpool]\n[softmax]\n",
        "softmax of a map": CONV + "[softmax]\ngroups=11\ntemperature=.5\n",
        "route of one": f"{CONV}{CONV}[route]\nlayers=-2\n",
        "route of three": f"{CONV}{CONV}{CONV}[route]\nlayers=-1,0,1\n",
        "shortcut": f"{CONV}{CONV}[shortcut]\nfrom=-2\nactivation=leaky\nalpha=.5\nbeta=2\n",
    }
    for size, stride, padding in (
        *((2, 2, None), (3, 2, None), (2, 1, None), (3, 1, None), (3, 2, 0), (3, 2, 1), (3, 3, 2)),
        *((2, 2, 0), (2, 2, 2), (5, 2, None), (3, 4, None), (4, 3, 3)),
    ):
        given = "" if padding is None else f"padding={padding}\n"
        cases[f"maxpool {size}/{stride}, {padding}"] = (
            f"[maxpool]\nsize={size}\nstride={stride}\n{given}"
        )
    few, many = CONV.replace("filters=4", "filters=2"), CONV.replace("filters=4", "filters=7")
    for name, (side, larger, reduced, smaller) in {
        # side of the map, the layers at the beginning, those that make it smaller, those after
        "twice": (8, few, "[maxpool]\nsize=2\nstride=2\n", many),
        "twice and one": (9, many, "[maxpool]\nsize=2\nstride=2\npadding=0\n", few),
        "thrice": (9, CONV, "[maxpool]\nsize=3\nstride=3\npadding=0\n", many),
        "less than twice": (9, many, "[maxpool]\nsize=5\nstride=1\npadding=0\n", CONV),
    }.items():
        layers = f"[crop]\ncrop_height={side}\ncrop_width={side}\n{larger}{reduced}{smaller}"
        cases[f"shortcut of {name} the size"] = f"{layers}[shortcut]\nfrom=1\nactivation=leaky\n"
        back = "[route]\nlayers=1\n[shortcut]\nfrom=3\nactivation=linear\n"
        cases[f"shortcut to {name} the size"] = layers + back
    cases["shortcut of fewer channels"] = f"{few}{CONV}[shortcut]\nfrom=-2\nactivation=leaky\n"
    cases["shortcut of more channels"] = f"{many}{CONV}[shortcut]\nfrom=0\nactivation=linear\n"
    for name in ACTIVATIONS:
        cases[f"activation {name}"] = CONV.replace("linear", name)
    return cases


@pytest.mark.parametrize("layers", layer_cases().values(), ids=layer_cases())
def test_each_layer_computes_what_the_program_computes(
    layers: str, darknet: Program, tmp_path: Path
) -> None:
    # The program gives no map to a layer after these.
    ends = "[softmax]" in layers or "[cost]" in layers
    text = NET + layers + ("" if ends else MAGNIFY)
    network = DarknetNetwork(parse_configuration(text, "tiny"))
    vector = seeded_weights(network, seed=1)
    # Enough for every piece of an activation that has several.
    for name, view in network.layout.views(vector).items():
        if name.endswith("kernel"):
            view *= 3
    pixels = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    ours = outputs(network, vector, pixels[np.newaxis].astype(np.float32) / 255)[0]
    (answer,) = darknet.predict(network, vector, [tmp_path / "noise.png"], len(ours))
    theirs = np.array([answer[i] for i in range(len(ours))])
    assert np.abs(theirs).max() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=LAST_DIGIT + 3e-6 * np.abs(theirs).max())


@pytest.mark.parametrize(
    ("header", "transposed"),
    [
        (struct.pack("<iiii", 0, 1, 0, 7), False),
        (struct.pack("<iiiQ", 0, 2, 0, 7), False),
        (struct.pack("<iiiQ", 1, 0, 0, 7), False),
        (struct.pack("<iiii", 1001, 0, 0, 7), True),
        (struct.pack("<iiii", 0, 1001, 0, 7), True),
    ],
    ids=["0.1", "0.2", "1.0", "1001.0", "0.1001"],
)
def test_files_of_every_version_are_read_as_the_program_reads_them(
    header: bytes, transposed: bool, darknet: Program, tmp_path: Path
) -> None:
    connected = "[connected]\noutput=4\nactivation=linear\n"
    text = NET + CONV + connected.replace("4", "5") + connected
    network = DarknetNetwork(parse_configuration(text, "tiny"))
    weights = tmp_path / "old.weights"
    numbers = np.random.default_rng(3).standard_normal(network.layout.size).astype("<f4")
    weights.write_bytes(header + numbers.tobytes())
    pixels = np.random.default_rng(4).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "noise.png")
    vector = read_weights(weights, network)
    ours = outputs(network, vector, pixels[np.newaxis].astype(np.float32) / 255)[0]
    (answer,) = darknet.predict_by_file(network, weights, [tmp_path / "noise.png"], 4)
    theirs = np.array([answer[i] for i in range(4)])
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=LAST_DIGIT)
    first = network.layout.views(vector)["002_connected/kernel"]
    lies = numbers[-20:].reshape((5, 4) if transposed else (4, 5))
    assert np.array_equal(first, lies if transposed else lies.T)


def test_a_network_that_was_trained_here_answers_the_same_in_the_program(
    darknet: Program, tmp_path: Path
) -> None:
    layers = CONV.replace("linear", "leaky") + "batch_normalize=1\n"
    text = (
        f"[net]\nheight=8\nwidth=8\nchannels=1\n{layers}[maxpool]\nsize=2\nstride=2\n"
        f"{layers}[shortcut]\nfrom=-2\nactivation=leaky\n[connected]\noutput=24\n"
        f"batch_normalize=1\nactivation=relu\n[dropout]\nprobability=.1\n"
        f"[connected]\noutput=10\nactivation=linear\n[softmax]\n"
    )
    configuration = parse_configuration(text, "digits")
    dataset = dataset_named("digits")
    recipe = Recipe(
        Sequential(Rescale(), Lambda(channel_last), DarknetNetwork(configuration, logits=True)),
        dataset="digits",
        input_shape=(8, 8),
        optimizer=Adam(),
        learning_rate=0.01,
        batch_size=32,
        epochs=4,
    )
    training = SingleProcess(recipe, dataset)
    assert list(training.epochs())[-1].accuracy > 0.8
    network = DarknetNetwork(configuration)
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, dataset.test_inputs, strict=False):
        Image.fromarray(image).save(path)
    images = dataset.test_inputs[:5, :, :, np.newaxis].astype(np.float32) / 255
    theirs = darknet.predict(network, training.weights, paths, 10)
    for ours, answer in zip(outputs(network, training.weights, images), theirs, strict=True):
        assert ours == pytest.approx([answer[i] for i in range(10)], abs=LAST_DIGIT)


def channel_last(images: Expression) -> Expression:
    return reshape(images, (*images.shape, 1))


# The program takes a second or so at the sizes that these are for.
SMALLER = {
    "alexnet": 115,
    "darknet19": 128,
    "darknet19_448": 128,
    "darknet53": 128,
    "resnet18": 128,
    "resnet34": 128,
    "resnet50": 128,
    "resnet101": 96,
    "resnet152": 64,
    "resnext50": 128,
    "resnext101-32x4d": 96,
    "resnext152-32x4d": 64,
    "densenet201": 64,
    "extraction": 128,
    "darknet53_448": 96,
    "vgg-16": 128,
}
# These repeat the blocks of one that is tried as wide as it is.
THINNER = {"darknet19_448", "resnet34", "resnet101", "resnet152", "darknet53_448", "vgg-16"}
THINNER |= {"resnext101-32x4d", "resnext152-32x4d", "darknet19", "extraction"}
CLASSES = "1000"
CROP = 96  # of 128 by 128 pixels


def network_for(name: str) -> DarknetNetwork:
    """A published network for smaller images, some with a quarter of the filters."""
    net, *layers = published(name).configuration(SMALLER.get(name)).sections
    if name in THINNER:
        layers = [thinner(each) for each in layers]
    return DarknetNetwork(Configuration((net, *layers), name))


def thinner(layer: Section) -> Section:
    """The layer with a quarter of its filters, groups or outputs, unless they are the classes."""
    fewer = {
        option: str(int(count) // 4)
        for option, count in layer.options.items()
        if option in ("filters", "output", "groups") and count not in ("1", CLASSES)
    }
    if layer.kind == "crop":
        fewer = {"crop_height": str(CROP), "crop_width": str(CROP)}
    return replace(layer, options=layer.options | fewer)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_answers_as_the_program_does(
    name: str, darknet: Program, image: Finder
) -> None:
    network = network_for(name)
    vector = seeded_weights(network, seed=3)
    paths = [image(each) for each in ("dog", "horses")]
    height, width, _ = network.input_shape
    images = [letterbox(load_image(path), height, width) for path in paths]
    ours = outputs(network, vector, np.stack(images))
    theirs = darknet.predict(network, vector, paths, 5)
    for probabilities, answer in zip(ours, theirs, strict=True):
        assert list(np.argsort(-probabilities)[:5]) == list(answer)
        for index, probability in answer.items():
            assert probabilities[index] == pytest.approx(probability, rel=1e-3, abs=1e-4)
    # Neither saturated nor the same for every image: the comparison is worth something.
    likeliest = ours.max(axis=1)
    assert ((likeliest > 0.01) & (likeliest < 0.9)).all()
    assert np.abs(ours[0] - ours[1]).max() > 2e-3
