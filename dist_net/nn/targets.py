"""The meaning of targets: which labels are valid, which count, and which predictions are right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff import (
    Expression,
    argmax,
    astype,
    broadcast_to,
    constant,
    equal,
    maximum,
    sum,
    where,
)
from dist_net.autodiff.arrays import Shape
from dist_net.errors import DatasetError
from dist_net.nn.losses import (
    CLASS_LOSSES,
    Loss,
    Weighted,
    binary_cross_entropy_of_logits,
    of_label,
)


@dataclass(frozen=True)
class TargetMeaning:
    """The meaning of targets of one shape and dtype to a loss of outputs.

    ``classes``: the number of classes that labels index; 0: targets are numbers, none of which is
    right or wrong. ``is_binary``: each output has a label from 0 to 1, and a logit above 0 predicts
    1. ``is_of_sample``: a sample has one label, an index of its outputs. ``weighted``: the loss, if
    it ignores a label.
    """

    classes: int = 0
    is_binary: bool = False
    is_of_sample: bool = False
    weighted: Weighted | None = None

    @classmethod
    def of(cls, loss: Loss, output_shape: Shape, shape: Shape, dtype: np.dtype[Any]) -> Self:
        """Return the meaning of targets with this shape and dtype per sample."""
        weighted = loss if isinstance(loss, Weighted) else None
        has_index = dtype.kind in "iu" and output_shape[-1:] and shape == output_shape[:-1]
        if has_index and (output_shape[-1] > 1 or of_label(loss) in CLASS_LOSSES):
            return cls(output_shape[-1], is_of_sample=shape == (), weighted=weighted)
        is_binary = dtype.kind in "iuf" and of_label(loss) is binary_cross_entropy_of_logits
        if is_binary and shape == output_shape:
            return cls(2, is_binary=True, weighted=weighted)
        return cls()

    def require(
        self, what: str, values: NDArray[Any], indices: NDArray[np.integer] | None = None
    ) -> None:
        """Raise ``DatasetError``, which names ``what``, for a label that is not valid.

        ``indices`` are the samples' places in a larger array.
        """
        if not self.classes:
            return
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
        """Return the predicted classes, the labels and which of them count; [] for numbers.

        The first two are intp, the last bool, all of the targets' shape.
        """
        if not self.classes:
            return []
        if self.is_binary:
            answers = astype(outputs > 0.0, np.intp)
            labels = astype(astype(targets, np.float32) > 0.5, np.intp)
        else:
            answers, labels = argmax(outputs, -1), astype(targets, np.intp)
        if self.weighted is None:
            return [answers, labels, broadcast_to(constant(np.array(True)), labels.shape)]
        return [answers, labels, self.weighted.counts(targets)]

    def right(self, outputs: Expression, targets: Expression) -> Expression:
        """Return how many samples are right: the share of the counted labels, times the samples."""
        if not self.classes:
            return constant(0, np.intp)
        answers, labels, counted = self.judged(outputs, targets)
        is_right = equal(answers, labels)
        if self.is_of_sample and self.weighted is None:
            return sum(astype(is_right, np.intp))
        total = maximum(sum(astype(counted, np.float32)), 1.0)
        right = where(counted, astype(is_right, np.float32), 0.0)
        return sum(right) * float(outputs.shape[0]) / total
