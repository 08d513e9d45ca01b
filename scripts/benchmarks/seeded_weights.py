"""Random weights that compute as well-behaved numbers as trained ones do.

What a comparison of two programs on random weights shows depends on the weights: a network whose
numbers grow, vanish or saturate agrees with anything, or with nothing.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from math import log, sqrt

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import Array, evaluate, variable
from dist_net.ground.vector import Vector
from dist_net.nets.darknet.darknet_layers import Connected, Convolutional, Cost, Softmax
from dist_net.nets.darknet.darknet_network import DarknetNetwork, PlacedLayer
from dist_net.nn import Scope, he_normal, linear

PATCHES = 8
"""An image has structure: the one that is tried has this many patches down and across."""

Views = dict[str, Vector]


def seeded_weights(network: DarknetNetwork, seed: int) -> Vector:
    """Weights for ``network``, in a new vector, well conditioned and the same for the same seed.

    - Kernels are normal, and then scaled, layer after layer, so that what the kernel gives for a
      random image has a mean square of 1 (Mishkin and Matas 2015, "All you need is a good
      init"): activations are of order 1 throughout, in a network of any depth.
    - Moving means and biases are normal with a deviation of 0.1. Moving variances are between
      0.8 and 1.25, where it makes no difference beyond 1e-6 whether an epsilon of 1e-6 is added
      to the deviation or to the variance; gammas lie between 0.8 and 1.2.
    - Where a softmax ends the network, the last layer with weights is scaled so that the softmax
      gets numbers of a deviation of sqrt(log(classes)): of 1000 classes, the most probable one
      gets about a tenth, and the next ones about half of that, as on a photograph.
    """
    generator = np.random.default_rng(seed)
    vector = np.zeros(network.layout.size, np.float32)
    views = network.layout.views(vector)
    image = _image(generator, network.input_shape)
    outputs: list[Array] = []
    for layer in network.layers:
        x = outputs[-1] if outputs else image
        if isinstance(layer.layer, Convolutional | Connected):
            _draw(layer, generator, views)
            _scale_kernel(layer, x, views)
        outputs.append(_run(layer, x, outputs, views))
    _scale_last(network, outputs, views)
    return vector


def _image(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    height, width, channels = shape
    patches = generator.random((PATCHES, PATCHES, channels), np.float32)
    rows = np.arange(height) * PATCHES // height
    columns = np.arange(width) * PATCHES // width
    return patches[np.newaxis, rows[:, np.newaxis], columns]


def _draw(layer: PlacedLayer, generator: np.random.Generator, views: Views) -> None:
    for stored in layer.layer.stored(layer.input_shape, layer.output_shape):
        view = views[f"{layer.name}/{stored.name}"]
        match stored.name:
            case "kernel":
                view[...] = he_normal(generator, view.shape)
            case "gamma":
                view[...] = generator.uniform(0.8, 1.2, view.shape)
            case "variance":
                view[...] = generator.uniform(0.8, 1.25, view.shape)
            case _:
                view[...] = generator.normal(0, 0.1, view.shape)


def _scale_kernel(layer: PlacedLayer, x: Array, views: Views) -> None:
    """Makes the mean square of what the kernel alone gives for ``x`` 1."""
    assert isinstance(layer.layer, Convolutional | Connected)
    plain = copy(layer.layer)
    plain.batch_normalize, plain.activation = False, linear
    bare = replace(layer, layer=plain)
    kernel = views[f"{layer.name}/kernel"]
    bias = np.zeros(layer.output_shape[3], np.float32)
    alone = {f"{layer.name}/kernel": kernel, f"{layer.name}/bias": bias}
    kernel /= sqrt(np.square(_run(bare, x, [], alone)).mean())


def _scale_last(network: DarknetNetwork, outputs: list[Array], views: Views) -> None:
    """Makes the deviation of what the last softmax gets sqrt(log(classes)), if there is one."""
    weighted = [each for each in network.layers if each.name + "/kernel" in views]
    layers = list(zip(network.layers, outputs, strict=True))
    while layers and isinstance(layers[-1][0].layer, Cost):
        layers.pop()
    if not weighted or len(layers) < 2 or not isinstance(layers[-1][0].layer, Softmax):
        return
    logits = layers[-2][1]
    if logits.size < 2:
        return
    factor = sqrt(log(logits.size)) / logits.std()
    last = weighted[-1]
    names = "gamma beta" if last.name + "/gamma" in views else "kernel bias"
    for name in names.split():
        views[f"{last.name}/{name}"] *= factor


def _run(layer: PlacedLayer, x: Array, earlier: list[Array], views: Views) -> Array:
    scope = Scope().child(layer.name)
    before = [variable(f"before_{i}", each.shape) for i, each in enumerate(earlier)]
    output = layer.layer(variable("x", x.shape), scope, before)
    arrays = {f"before_{i}": each for i, each in enumerate(earlier)}
    own = {name: view for name, view in views.items() if name.startswith(f"{layer.name}/")}
    return evaluate([output], x=x, **arrays, **own)[0]
