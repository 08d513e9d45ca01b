"""Losses, which map a batch of outputs and labels to one loss per sample; the meaning of targets.

Labels are ``(N,)`` integers in [0, C); outputs are ``(N, C) float32``. Labels of tokens or pixels
are ``(N, ...)``, with outputs ``(N, ..., C)``; the loss of a sample is their mean. A label outside
the range raises ``IndexRangeError`` when the plan runs.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dist_net import autodiff as ad
from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import Shape, integer, shown
from dist_net.autodiff.operations.classification import scores_of_labels
from dist_net.autodiff.operations.indexing import checked_indices
from dist_net.autodiff.operations.records import field_types
from dist_net.errors import DatasetError, DTypeError, ParameterError, ShapeError
from dist_net.ground.spelling import suggestion

Loss = Callable[[Expression, Expression], Expression]

MIN_PROBABILITY = 1e-7


def cross_entropy_of_probabilities(probabilities: Expression, labels: Expression) -> Expression:
    """Return -log(max(p, 1e-7)) for the label's probability p, as in Keras.

    If the network ends in a softmax, remove it and use ``cross_entropy_of_logits`` instead, which
    needs no such bound; shapes and errors are the same.
    """
    of_labels = scores_of_labels("cross_entropy_of_probabilities", probabilities, labels)
    losses = -ad.log(ad.maximum(of_labels, MIN_PROBABILITY))
    return ad.mean(losses, range(1, labels.ndim))


def binary_cross_entropy_of_logits(logits: Expression, labels: Expression) -> Expression:
    """Return the mean of -log p over a sample's labels, 0 or 1, of the logits' shape.

    p is sigmoid(logit) for 1, and sigmoid(-logit) for 0; labels between are mixtures of both. Raise
    ``ShapeError`` for other shapes.
    """
    targets = _targets_like("binary_cross_entropy_of_logits", logits, labels)
    # softplus(x) - x·t would lose the digits of -log sigmoid(14), 8e-7. Where x is 0, the larger of
    # equal elements is the second, and the slopes 0, -t and 1/2 add up to sigmoid(0) - t.
    distance = ad.maximum(logits, 0.0) * (1.0 - targets) + ad.maximum(0.0, -logits) * targets
    losses = distance + ad.log1p(ad.exp(ad.minimum(-logits, logits)))
    return ad.mean(losses, range(1, logits.ndim))


def binary_cross_entropy_of_probabilities(p: Expression, labels: Expression) -> Expression:
    """Return the same of p instead of its logit, bounded by 1e-7 as in Keras.

    If the network ends in a sigmoid, remove it: ``binary_cross_entropy_of_logits`` needs no bound.
    """
    bounded = ad.clip(p, MIN_PROBABILITY, 1 - MIN_PROBABILITY)
    return binary_cross_entropy_of_logits(ad.log(bounded / (1.0 - bounded)), labels)


def mean_squared_error(outputs: Expression, labels: Expression) -> Expression:
    """Return the mean squared difference between the outputs and ``labels``.

    ``labels`` have the shape of the outputs, or are integers without the last axis and become
    one-hot. Raise ``ShapeError`` for other shapes.
    """
    targets = _targets_like("mean_squared_error", outputs, labels)
    return ad.mean(ad.square(outputs - targets), range(1, outputs.ndim))


def mean_absolute_error(outputs: Expression, labels: Expression) -> Expression:
    """Return the mean absolute difference; ``labels`` are as for ``mean_squared_error``."""
    targets = _targets_like("mean_absolute_error", outputs, labels)
    return ad.mean(abs(outputs - targets), range(1, outputs.ndim))


@dataclass(frozen=True)
class Huber:
    """The mean of d²/2 for a difference d up to ``delta``, of delta (d - delta/2) beyond it."""

    delta: float = 1.0

    def __call__(self, outputs: Expression, labels: Expression) -> Expression:
        distance = abs(outputs - _targets_like("Huber", outputs, labels))
        bounded = ad.minimum(distance, self.delta)
        return ad.mean(bounded * (distance - bounded * 0.5), range(1, outputs.ndim))


@dataclass(frozen=True)
class Weighted:
    """``loss`` with the weight ``class_weights[label]`` for each label, 0 for ``ignored``.

    Labels are as for ``loss``, of samples, tokens or pixels. The loss of a sample is the sum of its
    weighted losses divided by the number of its labels that are not ignored, or 0 without any.
    ``class_weights`` has a number for each class, two for a binary cross-entropy. With
    ``label_smoothing``, a label of ``cross_entropy_of_logits`` has a probability that is smaller by
    that, which all classes share (Szegedy et al. 2016, arXiv 1512.00567). Targets may be a record
    of such labels, ``target``, and of a ``weight`` for each sample, which multiplies its loss. The
    mean of a batch is divided by the number of samples, as in Keras.

    Raise ``ParameterError`` for other weights, and ``DTypeError`` if labels to weight are floats.
    """

    loss: Loss | str
    class_weights: Sequence[float] | Mapping[int, float] | None = None
    ignored: int | None = -1
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "loss", loss_named(self.loss))
        given = self.class_weights
        if isinstance(given, Mapping) and given.keys() == {*range(len(given))}:
            given = [given[label] for label in range(len(given))]
        try:
            weights = None if given is None else tuple(map(float, given))
        except (TypeError, ValueError):
            weights = (-1.0,)
        if isinstance(given, Mapping) or not all(0 <= each < math.inf for each in weights or ()):
            raise ParameterError(
                f"Weighted: class_weights={self.class_weights!r:.200}; expected a list with a "
                f"number from 0 for each class, or a dict of them with the keys 0, 1, 2, ..."
            )
        object.__setattr__(self, "class_weights", weights)
        if self.label_smoothing and self.loss is not ad.cross_entropy_of_logits:
            raise ParameterError(
                f"Weighted: label_smoothing={self.label_smoothing!r}; expected it for the loss "
                f"cross_entropy_of_logits"
            )

    def __call__(self, outputs: Expression, labels: Expression) -> Expression:
        if labels.dtype.names:
            losses = self(outputs, labels["target"])
            return losses * ad.astype(labels["weight"], losses.dtype)
        if (self.class_weights, self.ignored, self.label_smoothing) == (None, None, 0):
            return loss_named(self.loss)(outputs, labels)
        if labels.shape not in (outputs.shape, outputs.shape[:-1]):
            raise ShapeError(
                f"Weighted: targets of shape {of_samples(labels)} for outputs of shape "
                f"{of_samples(outputs)}; expected the outputs' shape, with or without the last axis"
            )
        is_counted = self.counts(labels)
        known, count = ad.where(is_counted, labels, 0), labels.size
        rows = ad.reshape(outputs, (count, outputs.size // count))
        flat = ad.reshape(known, (count, 1)[: 1 + (labels.ndim == outputs.ndim)])
        each = loss_named(self.loss)(rows, flat)
        if self.label_smoothing:
            of_any = ad.mean(-ad.log_softmax(rows), 1)
            each = each * (1.0 - self.label_smoothing) + of_any * self.label_smoothing
        counted = ad.reshape(ad.astype(is_counted, outputs.dtype), (labels.shape[0], -1))
        weighted = each * self._weights(rows, ad.reshape(known, (count,)))
        total = ad.sum(ad.reshape(weighted, counted.shape) * counted, 1)
        return total / ad.maximum(ad.sum(counted, 1), 1.0)

    def counts(self, labels: Expression) -> Expression:
        if self.ignored is None:
            return ad.broadcast_to(ad.constant(np.array(True)), labels.shape)
        # An unsigned integer cannot be -1.
        return (ad.astype(labels, np.intp) if labels.dtype.kind in "iu" else labels) != self.ignored

    def _weights(self, rows: Expression, labels: Expression) -> Expression | float:
        """Return the weight of each label, (labels,), for its row of outputs."""
        if self.class_weights is None:
            return 1.0
        is_binary = rows.shape[1] == 1 and of_label(self) in BINARY_LOSSES
        if labels.dtype.kind not in "iu" and not is_binary:
            raise DTypeError(
                f"Weighted: class_weights for targets of dtype {labels.dtype}; expected integers, "
                f"as from targets.astype(int)"
            )
        classes = 2 if is_binary else rows.shape[1]
        if len(self.class_weights) != classes:
            raise ParameterError(
                f"Weighted: {len(self.class_weights)} class_weights for {classes} classes; "
                f"expected one for each"
            )
        by_class = ad.constant(np.array(self.class_weights, rows.dtype))
        if is_binary:
            return by_class[0] + (by_class[1] - by_class[0]) * ad.astype(labels, rows.dtype)
        return by_class[labels]


def _targets_like(name: str, outputs: Expression, labels: Expression) -> Expression:
    """Return labels as floats of the outputs' shape; class indices become one-hot."""
    is_class = labels.ndim < outputs.ndim and labels.dtype.kind in "iu" and outputs.shape[-1] > 1
    targets = one_hot(labels, outputs.shape[-1]) if is_class else labels
    if targets.shape != outputs.shape:
        raise ShapeError(
            f"{name}: targets of shape {of_samples(targets)} and dtype {targets.dtype} "
            f"for outputs of shape {of_samples(outputs)}; expected the outputs' shape"
            f"{_reshaped(targets, outputs) or ', or class indices, integers of shape (N,)'}"
        )
    return ad.astype(targets, outputs.dtype)


def one_hot(labels: Expression, classes: int) -> Expression:
    """Encode integers ``(N,)`` as ``(N, classes) float32``, 1 at the label. Raise DTypeError."""
    classes = integer("one_hot: classes", classes, least=1)
    checked = checked_indices("one_hot", labels, classes)
    numbers = ad.constant(np.arange(classes, dtype=np.intp))
    return ad.astype(ad.equal(checked[..., None], numbers), np.float32)


def of_samples(batch: Expression) -> str:
    """Return the shape of a batch of N samples, for messages: ``(N, 3)``."""
    return f"({', '.join(['N', *map(str, batch.shape[1:])])}{',' * (batch.ndim == 1)})"


def _reshaped(targets: Expression, outputs: Expression) -> str:
    """Return the ``reshape`` call from the targets' shape to the outputs'; "" if impossible."""
    shape = of_samples(outputs).replace("N", "-1")
    return f": targets.reshape{shape}" if targets.size == outputs.size else ""


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy_of_logits": binary_cross_entropy_of_logits,
    "binary_cross_entropy_of_probabilities": binary_cross_entropy_of_probabilities,
    "binary_crossentropy": binary_cross_entropy_of_probabilities,
    "cross_entropy_of_logits": ad.cross_entropy_of_logits,
    "cross_entropy_of_probabilities": cross_entropy_of_probabilities,
    "huber": Huber(),
    "mae": mean_absolute_error,
    "mean_absolute_error": mean_absolute_error,
    "mean_squared_error": mean_squared_error,
    "mse": mean_squared_error,
    "sparse_categorical_crossentropy": cross_entropy_of_probabilities,
}
"""The losses by name; those in Keras's spelling take probabilities, which is Keras's default."""

LOSS_CLASSES = Huber, Weighted
CLASS_LOSSES = ad.cross_entropy_of_logits, cross_entropy_of_probabilities
BINARY_LOSSES = binary_cross_entropy_of_logits, binary_cross_entropy_of_probabilities


def of_label(loss: Loss) -> Loss:
    return loss_named(loss.loss) if isinstance(loss, Weighted) else loss


def mean_loss(loss: Loss, outputs: Expression, targets: Expression) -> Expression:
    """Return the mean of ``loss`` over a batch.

    Raise ``ShapeError`` unless it has one value per sample: outputs (N, 1) and targets (N,) would
    broadcast to (N, N), and training on their mean is meaningless.
    """
    losses = loss(outputs, targets)
    if not isinstance(losses, Expression):
        raise ShapeError(f"the loss returned {losses!r:.80}; expected an expression of shape (N,)")
    if losses.shape != outputs.shape[:1]:
        raise ShapeError(
            f"the loss has shape {losses.shape} for a batch of {outputs.shape[0]} samples, with "
            f"outputs of shape {of_samples(outputs)} and targets of shape {of_samples(targets)}; "
            f"expected one value per sample, (N,): take the mean over the other axes, or reshape "
            f"targets to the outputs' shape{_reshaped(targets, outputs)}"
        )
    return ad.mean(losses)


PRODUCTS = {"Conv2D", "MatMul"}
LOSS_OF_PROBABILITIES: dict[Loss, Loss] = {
    ad.cross_entropy_of_logits: cross_entropy_of_probabilities,
    binary_cross_entropy_of_logits: binary_cross_entropy_of_probabilities,
}
"""The losses of logits, and those of the probabilities that they stand for."""


def misused_outputs(loss: Loss, output: Expression) -> str:
    """Return what to change if a loss of logits takes probabilities, or the reverse; "" if not."""
    while output.operation.label == "Reshape":
        (output,) = output.inputs
    last, *before = output.operation.label, *(each.operation.label for each in output.inputs)
    is_linear = last in PRODUCTS or (last == "Add" and not PRODUCTS.isdisjoint(before))
    for of_logits, of_probabilities in LOSS_OF_PROBABILITIES.items():
        if of_label(loss) is of_logits and last in ("Sigmoid", "softmax"):
            other, change = of_probabilities, f"leave out the {last.lower()} at the network's end"
        elif of_label(loss) is of_probabilities and is_linear:
            other, change = of_logits, "end the network with a softmax or sigmoid"
        else:
            continue
        return f"the outputs do not suit {shown(of_label(loss))}: {change}, or use {shown(other)}"
    return ""


def loss_named(loss: Loss | str) -> Loss:
    """Return the loss of a name in ``LOSSES``, or ``loss`` itself; raise ParameterError."""
    if callable(loss):
        return loss
    if str(loss) not in LOSSES:
        raise ParameterError(f"there is no loss {loss!r}; {suggestion(str(loss), LOSSES)}")
    return LOSSES[str(loss)]


@dataclass(frozen=True)
class TargetMeaning:
    """The meaning of targets of one shape and dtype to a loss of outputs.

    ``classes``: the number of classes that labels index; 0: targets are numbers, none of which is
    right or wrong. ``threshold``: each output has a label from 0 to 1, and one above the threshold
    predicts 1. ``is_of_sample``: a sample has one label, an index of its outputs. ``weighted``: the
    loss, if it ignores a label. ``field``: that of the labels, if the targets are a record.
    """

    classes: int = 0
    threshold: float | None = None
    is_of_sample: bool = False
    weighted: Weighted | None = None
    field: str = ""

    @classmethod
    def of(cls, loss: Loss, output_shape: Shape, shape: Shape, dtype: np.dtype[Any]) -> Self:
        """Return the meaning of targets with this shape and dtype per sample."""
        if isinstance(loss, Weighted) and "target" in (dtype.names or ()):
            own_dtype, own_shape = field_types(dtype, shape)["target"]
            return replace(cls.of(loss, output_shape, own_shape, own_dtype), field="target")
        weighted, bare = loss if isinstance(loss, Weighted) else None, of_label(loss)
        has_index = dtype.kind in "iu" and output_shape[-1:] and shape == output_shape[:-1]
        if has_index and (output_shape[-1] > 1 or bare in CLASS_LOSSES):
            return cls(output_shape[-1], is_of_sample=shape == (), weighted=weighted)
        if dtype.kind in "iuf" and bare in BINARY_LOSSES and shape == output_shape:
            threshold = 0.0 if bare is binary_cross_entropy_of_logits else 0.5
            return cls(2, threshold, weighted=weighted)
        return cls()

    def require(
        self, what: str, values: NDArray[Any], indices: NDArray[np.integer] | None = None
    ) -> None:
        """Raise ``DatasetError``, which names ``what``, for a label that is not valid."""
        if not self.classes:
            return
        values = values[self.field] if self.field else values
        last = self.classes - 1
        is_valid = (values >= 0) & (values <= last)
        expected = f"0 to {last} for {self.classes} classes"
        if self.weighted is not None:
            is_valid |= values == self.weighted.ignored
            expected += f", or {self.weighted.ignored}, which is ignored"
        if not is_valid.all():
            place = tuple(np.argwhere(~is_valid)[0])
            index = place[0] if indices is None else indices[place[0]]
            raise DatasetError(f"{what} {values[place]} at index {index}: expected {expected}")

    def judged(self, outputs: Expression, targets: Expression) -> list[Expression]:
        """Return predicted classes and labels, intp, and which count, bool; [] for numbers."""
        if not self.classes:
            return []
        targets = targets[self.field] if self.field else targets
        if self.threshold is not None:
            answers = ad.astype(outputs > self.threshold, np.intp)
            labels = ad.astype(ad.astype(targets, np.float32) > 0.5, np.intp)
        else:
            answers, labels = ad.argmax(outputs, -1), ad.astype(targets, np.intp)
        if self.weighted is None:
            return [answers, labels, ad.broadcast_to(ad.constant(np.array(True)), labels.shape)]
        return [answers, labels, self.weighted.counts(targets)]

    def right(self, outputs: Expression, targets: Expression) -> Expression:
        """Return how many samples are right: the share of the counted labels, times the samples."""
        if not self.classes:
            return ad.constant(0, np.intp)
        answers, labels, counted = self.judged(outputs, targets)
        is_right = ad.equal(answers, labels)
        if self.is_of_sample and self.weighted is None:
            return ad.sum(ad.astype(is_right, np.intp))
        total = ad.maximum(ad.sum(ad.astype(counted, np.float32)), 1.0)
        right = ad.where(counted, ad.astype(is_right, np.float32), 0.0)
        return ad.sum(right) * float(outputs.shape[0]) / total
