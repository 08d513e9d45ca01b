"""A model: a network with a fixed input shape, compiled for training or inference."""

from __future__ import annotations

import math
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Never, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

from dist_net import autodiff as ad
from dist_net.autodiff import BoundPlan, Expression, Plan
from dist_net.autodiff.arrays import Arena, Shape, integer, integers, shown
from dist_net.autodiff.compiler.specialise import fused
from dist_net.autodiff.expression import topological_order
from dist_net.autodiff.kernels.convolution.training import compiled_loops
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.autodiff.operations.convolution import Conv2D
from dist_net.autodiff.operations.records import field_types
from dist_net.errors import (
    DatasetError,
    DTypeError,
    ModelFileError,
    ParameterError,
    ShapeError,
)
from dist_net.ground.checkpoint import CONVERSIONS, Checkpoint, read_checkpoint, write_checkpoint
from dist_net.ground.spelling import explained, no_attribute
from dist_net.ground.vector import Vector, array_of
from dist_net.nn import network_json
from dist_net.nn.layers import Layer
from dist_net.nn.losses import (
    CLASS_LOSSES,
    Loss,
    TargetMeaning,
    loss_named,
    mean_loss,
    misused_outputs,
    of_label,
    of_samples,
)
from dist_net.nn.parameters import Layout, Scope

Batch = NDArray[np.generic]

INPUTS = "inputs"
TARGETS = "targets"
FIT = "train it by dist_net.fit(model, inputs, targets, epochs=10)"
HABITS = {
    **dict.fromkeys(("fit", "train", "train_on_batch", "partial_fit"), FIT),
    "compile": "pass loss= to Model, and optimizer= to dist_net.fit(model, inputs, targets)",
    **dict.fromkeys(("parameters", "state_dict", "get_weights"), "read model.weights"),
    **dict.fromkeys(("load_state_dict", "set_weights"), "assign model.weights"),
    "predict_proba": "dist_net.nn.inference.softmax(model.predict(inputs))",
    **dict.fromkeys(("forward", "__call__"), "model.predict(inputs)"),
    "eval": "model.predict(inputs) never trains",
    **dict.fromkeys(("to", "cuda", "cpu", "half"), "leave it out: dist_net computes on CPUs"),
}
"""What Keras, PyTorch and scikit-learn call a model's methods, and how to do the same."""

CHANNELS_LAST = "Maps are (rows, columns, channels): use np.moveaxis(images, 1, -1)"

SAVED = "saved"
"""In place of the name of a recipe, in the checkpoint of a model that was trained without one."""


class Model:
    """A network, the shape and dtype of one input, and the loss that training minimises.

    ``loss`` is a function or a name such as "mse". ``layout`` places the parameters and buffers in
    a flat vector. Outputs are float32 with ``output_shape`` per input. Targets have any shape and
    dtype that the loss accepts. ``class_names`` name the outputs, by default by numbers.

    Several inputs are the fields of a record: ``input_dtype`` is that of a structured array, with
    ``input_shape=()``. Several outputs are a record too, then ``predict`` returns such an array.
    ``input_fields`` and ``output_fields`` have the dtype and shape of each by name; "" if single.
    ``trained_epochs`` counts the epochs of ``dist_net.fit``: its next call has other orders.
    ``misuse``: see ``misused_outputs``.
    """

    @explained("Model(network, input_shape), such as (28, 28), the shape of one sample")
    def __init__(
        self,
        network: Layer,
        input_shape: tuple[int, ...],
        loss: Loss | str = ad.cross_entropy_of_logits,
        input_dtype: DTypeLike = np.uint8,
        class_names: Sequence[str] = (),
    ) -> None:
        if not callable(network):
            raise ParameterError(
                f"network={network!r:.60}: expected a layer, such as Dense(10), or several in "
                f"Sequential(...)"
            )
        self.network = network
        of_sample = "Model: input_shape, of one sample and without None, such as (8,), is"
        self.input_shape = integers(of_sample, input_shape)
        self.input_dtype = np.dtype(input_dtype)
        self.loss = loss_named(loss)
        scope = Scope()
        output = network(self.input(1), scope)
        if output.shape[:1] != (1,) or not (output.dtype == np.float32 or output.dtype.names):
            raise ShapeError(
                f"a network's output must be float32, with the sample axis first, not "
                f"{output.dtype}{list(output.shape)} for one sample"
            )
        self.output_shape, self.output_dtype = output.shape[1:], output.dtype
        self.input_fields = field_types(self.input_dtype, self.input_shape)
        self.output_fields = field_types(self.output_dtype, self.output_shape)
        has_classes = of_label(self.loss) in CLASS_LOSSES and len(self.output_shape) == 1
        self.class_names = tuple(class_names or map(str, range(self.classes * has_classes)))
        operations = [node.operation for node in topological_order([output])]
        self.has_convolutions = any(isinstance(each, Conv2D) for each in operations)
        first, *others = self.input_shape or (0,)
        if self.has_convolutions and first in (1, 3) and len(others) == 2 and min(others) >= 8:
            warnings.warn(f"input_shape={self.input_shape}: {CHANNELS_LAST}", stacklevel=3)
        self.misuse = misused_outputs(self.loss, output)
        self.layout = Layout(scope.parameters, scope.buffers)
        self.trained_epochs = 0
        self._predictor: Predictor | None = None

    def __repr__(self) -> str:
        return (
            f"Model({self.network!r}, {self.input_shape}, loss={shown(self.loss)}, "
            f"input_dtype={self.input_dtype}) with {self.layout.trained_size:,} parameters"
        )

    if not TYPE_CHECKING:  # a checker would accept any name

        def __getattr__(self, name: str) -> Never:
            raise no_attribute(self, name, HABITS)

        def __call__(self, *_: object) -> Never:
            raise no_attribute(self, "__call__", HABITS)

    @property
    def weights(self) -> Vector | None:
        """The weights that ``predict`` uses, borrowed; None if not set."""
        return self._predictor.weights if self._predictor else None

    @weights.setter
    def weights(self, weights: Vector) -> None:
        found = np.shape(weights), getattr(weights, "dtype", type(weights).__name__)
        if found != ((self.layout.size,), np.float32):
            raise ShapeError(
                f"weights are {found[1]}{[*found[0]]}; expected an array, "
                f"float32[{self.layout.size}]"
            )
        self._predictor = Predictor(self, weights)

    @property
    def predictor(self) -> Predictor:
        """What computes the outputs with the weights; raise ``ParameterError`` without weights."""
        if self._predictor is None:
            raise ParameterError(
                "the model has no weights; train it first: dist_net.fit(model, ...)"
            )
        return self._predictor

    def predict(self, inputs: Batch) -> NDArray[np.float32]:
        """Return the outputs ``(N, *output_shape)`` of inputs ``(N, *input_shape)``, a new array.

        They are the inputs of the loss: logits if the loss takes logits. Raise ``ShapeError`` if
        the inputs have another shape or dtype, ``ParameterError`` if the model has no weights.
        """
        return self.predictor(inputs)

    @explained("model.evaluate(inputs, targets)")
    def evaluate(self, inputs: Batch, targets: Batch) -> dict[str, float]:
        """Return the mean ``loss``, and the ``accuracy`` if targets are labels.

        The accuracy is the share of right predictions for labels that are not ignored. Raise as
        ``predict`` does, and DatasetError for a label that is not valid.
        """
        arrays = {"outputs": self.predict(inputs), TARGETS: self.targets_of(targets)}
        counts = [*map(len, arrays.values())]
        if counts[0] != counts[1]:
            raise DatasetError(
                f"evaluate: {counts[1]} targets for {counts[0]} inputs; expected one per input"
            )
        meaning = self.targets(arrays[TARGETS].shape[1:], arrays[TARGETS].dtype)
        meaning.require("target", arrays[TARGETS])
        variables = [ad.variable(name, each.shape, each.dtype) for name, each in arrays.items()]
        loss, *judged = ad.evaluate(
            [mean_loss(self.loss, *variables), *meaning.judged(*variables)], **arrays
        )
        figures = {"loss": float(loss)}
        if judged and judged[2].any():
            answers, labels, counted = judged
            figures["accuracy"] = float(np.mean((answers == labels)[counted]))
        return figures

    def summary(self) -> str:
        """Return a table of the layers: their output shapes and numbers of trained parameters.

        A parameter counts in the first row of a layer that has it, and in the sum, the last row.
        """
        scope = Scope()
        output = self.network(self.input(1), scope)
        rows = [("layer", "output shape", "parameters")]
        left = {each.name: each.size for each in self.layout.parameters}
        for name, of_layer in scope.outputs:
            size = sum(left.pop(each) for each in [*left] if each.startswith(name))
            rows.append((name.rstrip("/"), of_samples(of_layer), f"{size:,}"))
        total = f"{self.layout.trained_size:,}"
        rows.append((type(self.network).__name__, of_samples(output), total))
        name_width, shape_width, _ = (max(map(len, each)) for each in zip(*rows, strict=True))
        return "\n".join(f"{a:{name_width}}  {b:{shape_width}}  {c:>12}" for a, b, c in rows)

    def save(self, path: str | Path) -> None:
        """Write a checkpoint of the weights with network and loss, which can be loaded and served.

        A part that is not of ``dist_net.nn``, such as a function of your own in a ``Lambda``, is
        left out: warn that ``load`` needs it again. Raise ModelFileError for a model that ``load``
        would refuse, such as one with an array of a megabyte, and FileWriteError.
        """
        if Path(path).suffix in (*CONVERSIONS, ".onnx"):
            raise ModelFileError(
                f"{path} would be no file of that kind; expected a name such as model.safetensors. "
                f"Other programs read ONNX: dist_net.export_model(model, 'model.onnx')"
            )
        record = {"class_names": [*self.class_names], "model": self.to_json()}
        try:
            is_whole = self.from_json(record["model"]).to_json() == record["model"]
            lacking = "" if is_whole else f"the loss {shown(self.loss)} is not of dist_net.nn"
        except ModelFileError as error:
            self.from_json(record["model"], self.network, self.loss)  # or nothing can be replaced
            lacking = str(error)
        if lacking:
            remedy = "load it with Model.load(path, network=..., loss=...), which replace both"
            warnings.warn(f"{path} lacks a part of the model: {remedy}. {lacking}", stacklevel=2)
        settings = {"has_classes": bool(self.class_names)}
        shapes, weights = self.layout.shapes, self.predictor.weights
        found = Checkpoint(SAVED, "", shapes, 0, settings, {}, {}, weights, {}, record)
        write_checkpoint(Path(path), found)

    @classmethod
    def load(
        cls, path: str | Path, network: Layer | None = None, loss: Loss | str | None = None
    ) -> Self:
        """Return the model of a file that ``save`` wrote; no code of the file runs.

        ``network`` and ``loss`` replace the file's. Raise CheckpointError for another file, and
        ModelFileError for a network that cannot be built.
        """
        checkpoint = read_checkpoint(Path(path))
        record = checkpoint.recipe_record
        model = cls.from_json(record.get("model"), network, loss)
        checkpoint.require_layout(model.layout.shapes)
        model.weights, model.class_names = checkpoint.weights, tuple(record["class_names"])
        return model

    def to_json(self) -> str:
        return network_json.describe(self.network, self.loss, self.input_fields)

    @classmethod
    def from_json(
        cls, text: Any, network: Layer | None = None, loss: Loss | str | None = None
    ) -> Self:
        """Return the model of ``to_json`` with given parts replaced. Raise ModelFileError."""
        return cls(*network_json.parse(text, network, loss))

    @property
    def classes(self) -> int:
        """The number of outputs per input; in a classifier, the number of classes."""
        return math.prod(self.output_shape)

    def targets(self, shape: tuple[int, ...], dtype: DTypeLike) -> TargetMeaning:
        """Return the meaning of targets with this shape and dtype per sample."""
        return TargetMeaning.of(self.loss, self.output_shape, shape, np.dtype(dtype))

    def require_batch_size(self, batch_size: int) -> None:
        """Raise ``ParameterError`` if batch norm would never see two rows in a minibatch."""
        of_one, of_two = Scope(training=True), Scope(training=True)
        self.network(self.input(1), of_one)
        self.network(self.input(2), of_two)
        if batch_size == 1 and of_one.observed.keys() != of_two.observed.keys():
            raise ParameterError(
                "minibatches of one sample have no variance for BatchNorm to normalise by; "
                "expected a batch_size of at least 2, and at least 2 samples"
            )

    def targets_of(self, targets: Any) -> Any:
        """Return targets as float32 if they are integers that are no class indices.

        They are numbers to predict if the network has a single output, or if the loss accepts
        floats of their shape. Raise ``DTypeError`` for bools, strings and objects.
        """
        targets = array_of(targets, TARGETS)
        if not isinstance(targets, np.ndarray) or targets.dtype.names:
            return targets
        shape, dtype = targets.shape[1:], targets.dtype
        if dtype.kind not in "iuf":
            numbered = "class_names, targets = np.unique(targets, return_inverse=True)"
            remedy = "targets.astype(int)" if dtype.kind == "b" else numbered
            raise DTypeError(f"targets of dtype {dtype}; expected numbers, as from {remedy}")
        if dtype.kind == "f" or self.targets(shape, dtype).classes:
            return targets
        try:
            self.require_targets(shape, np.float32)
        except (ShapeError, DTypeError) as error:
            if self.classes > 1 or isinstance(error, DTypeError):
                return targets
        return targets.astype(np.float32)

    def require_targets(self, target_shape: tuple[int, ...], target_dtype: DTypeLike) -> None:
        """Raise ``ShapeError`` or ``DTypeError`` unless the loss accepts such targets."""
        outputs = ad.variable("outputs", (2, *self.output_shape), self.output_dtype)
        mean_loss(self.loss, outputs, ad.variable(TARGETS, (2, *target_shape), target_dtype))

    def input(self, batch_size: int) -> Expression:
        return ad.variable(INPUTS, (batch_size, *self.input_shape), self.input_dtype)

    def inputs_of(self, inputs: Any) -> Any:
        """Return inputs as an array, see ``array_of``; ``Samples`` as they are.

        Bools become the model's dtype, and so do floats for a model of floats, and integers that
        were no array.
        """
        array, own = array_of(inputs, INPUTS), self.input_dtype
        kind = array.dtype.kind if isinstance(array, np.ndarray) else ""
        is_converted = (kind == "b" and own.kind in "iuf") or kind == own.kind == "f"
        with np.errstate(over="ignore"):  # infinite values are refused later
            if kind == "i" and array is not inputs:
                is_converted = bool((array.astype(own) == array).all())
            return array.astype(own, copy=False) if is_converted else array

    def expected_inputs(self, shape: Shape, dtype: np.dtype[Any]) -> str:
        """Return what is expected instead of samples of this shape and dtype; "" if they fit."""
        own, own_dtype = self.input_shape, self.input_dtype
        if (shape, dtype) == (own, own_dtype):
            return ""
        batch = of_samples(self.input(1))
        text = f"expected {batch}, the model's input_shape={own} and input_dtype={own_dtype}"
        if dtype != own_dtype:
            text += ". For floats use float32 for both, for pixels uint8"
        return f"{text}. {CHANNELS_LAST}" if shape == (*own[-1:], *own[:-1]) != own else text

    def require_inputs(self, inputs: Batch) -> None:
        """Raise ``ShapeError`` unless ``inputs`` are (N, *input_shape) with the model's dtype."""
        if not isinstance(inputs, np.ndarray):
            found = f"of type {type(inputs).__name__}; expected an array of {self.input_dtype}"
            raise ShapeError(f"predict: inputs {found}")
        if expected := self.expected_inputs(inputs.shape[1:], inputs.dtype):
            raise ShapeError(f"predict: inputs are {inputs.dtype}{[*inputs.shape]}; {expected}")

    def compile_training(
        self,
        batch_size: int,
        generator: np.random.Generator,
        pool: ThreadPool | None = None,
        target: DTypeLike = np.uint8,
        arena: Arena | None = None,
        in_parts: bool = False,
    ) -> Plan:
        """Compile a training plan for a batch and its targets.

        ``target`` is the dtype of a sample's target: ``(dtype, shape)`` if it has axes.
        Its outputs are the mean loss, the number of samples predicted right, see
        ``TargetMeaning``, the gradients, and the observations for the buffers, as in ``layout``.
        Layers such as Dropout draw from ``generator`` at each run; ``pool`` and ``arena`` are as
        for ``compile``. ``in_parts``: the batch is a part of a minibatch; see ``Scope``.
        Raise ``ShapeError`` or ``DTypeError`` if the loss does not accept such targets.
        """
        scope = Scope(training=True, generator=generator)
        scope.in_parts = in_parts
        outputs = self.network(self.input(batch_size), scope)
        kind = np.dtype(target)
        targets = ad.variable(TARGETS, (batch_size, *kind.shape), kind.base)
        loss = mean_loss(self.loss, outputs, targets)
        right = self.targets(kind.shape, kind.base).right(outputs, targets)
        by_parameter = ad.gradients(loss, list(scope.variables.values()))
        observed = [
            scope.observed.get(each.name, ad.variable(each.name, each.shape))
            for each in self.layout.buffers
        ]
        return ad.compile([loss, right, *by_parameter, *observed], pool, arena)

    def bind_evaluation(self, inputs: Batch, targets: Batch, weights: Vector) -> BoundPlan:
        """Return a plan for the mean loss and ``TargetMeaning.judged``; it borrows the arrays."""
        outputs = self.network(self.input(len(inputs)), Scope())
        expected = ad.variable(TARGETS, targets.shape, targets.dtype)
        loss = mean_loss(self.loss, outputs, expected)
        judged = self.targets(targets.shape[1:], targets.dtype).judged(outputs, expected)
        arrays = {INPUTS: inputs, TARGETS: targets, **self.layout.views(weights)}
        return ad.compile([loss, *judged]).bind(arrays)

    def bind_training(
        self, plan: Plan, inputs: Batch, targets: Batch, weights: Vector, gradient: Vector
    ) -> BoundPlan:
        """Bind the training plan to these arrays, which are borrowed.

        A run writes the gradients to ``gradient``, with observations in the buffers' places. Its
        first two outputs are the mean loss and the number of samples predicted right.
        """
        return plan.bind(
            {INPUTS: inputs, TARGETS: targets, **self.layout.views(weights)},
            into=[None, None, *self.layout.views(gradient).values()],
        )


class Predictor:
    """Computes a model's outputs, ``batch_size`` inputs at a time. Threads take turns."""

    def __init__(self, model: Model, weights: Vector, batch_size: int = 256) -> None:
        self._model = model
        self.weights = weights
        self._batch_size = integer("Predictor: batch_size", batch_size, least=1)
        self._bound: dict[int, tuple[Batch, BoundPlan]] = {}
        self._arena = Arena()
        self._turn = threading.Lock()

    def __reduce__(self) -> tuple[type[Predictor], tuple[Model, Vector, int]]:
        """Copy the weights alone: a copy has memory and turns of its own."""
        return Predictor, (self._model, self.weights, self._batch_size)

    def __call__(self, inputs: Batch) -> NDArray[np.float32]:
        """Return the outputs ``(N, *output_shape)`` of inputs ``(N, *input_shape)``, a new array.

        Raise ``ShapeError`` if the inputs have another shape or dtype.
        """
        inputs = self._model.inputs_of(inputs)
        self._model.require_inputs(inputs)
        outputs = np.empty((len(inputs), *self._model.output_shape), self._model.output_dtype)
        start = 0
        while (left := len(inputs) - start) > 0:
            # A partial batch is split into powers of two, which need only a few plans.
            size = self._batch_size if left >= self._batch_size else 1 << left.bit_length() - 1
            with self._turn:
                batch, bound = self._bind(size)
                batch[...] = inputs[start : start + size]
                outputs[start : start + size] = bound.run()[0]
            start += size
        return outputs

    def _bind(self, batch_size: int) -> tuple[Batch, BoundPlan]:
        if batch_size not in self._bound:
            batch = np.empty((batch_size, *self._model.input_shape), self._model.input_dtype)
            arrays = {INPUTS: batch, **self._model.layout.views(self.weights)}
            outputs = [self._model.network(self._model.input(batch_size), Scope())]
            if self._model.has_convolutions:  # otherwise too little is saved to import numba for
                compiled = compiled_loops("epilogues") is not None
                weights = dict(self._model.layout.shapes)
                outputs = fused(outputs, weights, ThreadPool(), compiled)
            self._bound[batch_size] = batch, ad.compile(outputs, arena=self._arena).bind(arrays)
        return self._bound[batch_size]
