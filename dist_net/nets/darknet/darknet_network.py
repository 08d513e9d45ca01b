"""The network of a Darknet configuration as an ``nn`` layer, for training and inference."""

from dataclasses import dataclass

import numpy as np

from dist_net.autodiff import Expression, Shape, variable
from dist_net.errors import ParameterError, ShapeError
from dist_net.nets.darknet.configuration import Configuration, Section
from dist_net.nets.darknet.darknet_layers import LAYERS, Cost, DarknetLayer, Softmax, flattened
from dist_net.nn import Layout, Model, Scope, cross_entropy_of_probabilities


@dataclass(frozen=True)
class PlacedLayer:
    """A layer with its shapes, (1, H, W, C); its parameters' names begin with ``name``."""

    name: str
    section: Section
    layer: DarknetLayer
    input_shape: Shape
    output_shape: Shape


class DarknetNetwork:
    """The network that a configuration describes.

    A function from (N, height, width, channels) float32 to (N, classes): the outputs of the last
    layer, in Darknet's order of channels, rows, columns; with ``logits``, the input of the final
    softmax. ``input_shape`` is (height, width, channels), ``layers`` holds every layer with its
    shapes, and ``layout`` places the parameters and buffers.

    Raise ``ModelFileError``, naming the line, for an invalid option and maps that do not fit.
    """

    def __init__(self, configuration: Configuration, logits: bool = False) -> None:
        self.configuration = configuration
        self.logits = logits
        self.input_shape = _input_shape(configuration.net)
        self._layers: list[tuple[str, Section, DarknetLayer]] = []
        for index, section in enumerate(configuration.layers):
            if section.kind not in LAYERS:
                raise section.error("follows a layer; expected it once, as the first section")
            layer = LAYERS[section.kind](section, index)
            self._layers.append((f"{index:03}_{section.kind}", section, layer))
        x = variable("inputs", (1, *self.input_shape))
        scope = Scope()
        outputs = self.outputs(x, scope)
        self.layout = Layout(scope.parameters, scope.buffers)
        maps = zip(self._layers, [x, *outputs], outputs, strict=False)
        self.layers = tuple(PlacedLayer(*each, x.shape, y.shape) for each, x, y in maps)

    @property
    def model(self) -> Model:
        return Model(self, self.input_shape, cross_entropy_of_probabilities, np.float32)

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        outputs = self.outputs(x, scope)
        layers = [layer for _, _, layer in self._layers]
        last = len(layers) - 1
        while last > 0 and isinstance(layers[last], Cost):
            last -= 1
        softmax = layers[last]
        if self.logits and isinstance(softmax, Softmax):
            return softmax.logits(outputs[last - 1] if last else x)
        return flattened(outputs[last])

    def outputs(self, x: Expression, scope: Scope) -> list[Expression]:
        """Return every layer's output (N, H, W, C) for ``x``, (N, height, width, channels)."""
        if x.shape[1:] != self.input_shape:
            raise ShapeError(
                f"{self.configuration.name}: inputs are {x.shape}, expected (N, "
                f"{', '.join(map(str, self.input_shape))})"
            )
        outputs: list[Expression] = []
        for name, section, layer in self._layers:
            try:
                x = layer(x, scope.child(name), outputs)
            except (ParameterError, ShapeError) as error:
                raise section.error(str(error)) from error
            outputs.append(x)
        return outputs


def _input_shape(net: Section) -> Shape:
    shape = tuple(net.integer(side, 0, 0) for side in ("height", "width", "channels"))
    if 0 in shape:
        raise net.error(
            f"defines inputs of height {shape[0]}, width {shape[1]} and {shape[2]} channels; "
            f"expected at least 1 for each"
        )
    inputs = shape[0] * shape[1] * shape[2]
    if net.integer("inputs", inputs) != inputs:
        raise net.error(
            f"inputs={net.options['inputs']}: expected {inputs}, or no such option", "inputs"
        )
    return shape
