"""ONNX files as the base of nets for photos: pixels to features, within a net of ours."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import SharedOperation, apply
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.errors import ForeignModelError
from dist_net.ground.vector import Vector
from dist_net.nets.foreign_onnx import ONNX
from dist_net.nets.onnx_gate import PixelOptions, accept, session_of
from dist_net.nn import Scope, zeros


@dataclass(frozen=True)
class OnnxFeatures:
    """Pixels, (N, H, W, C) uint8, to features, (N, features), by a file of ``size`` bytes.

    The file is a buffer of the net, so that checkpoints, prepared arrays and workers on other hosts
    contain it: two bytes to a number, since every float32 of a checkpoint must be finite.
    """

    size: int
    features: int

    def __call__(self, x: Expression, scope: Scope) -> Expression:
        file = scope.buffer("file", (-(-self.size // 2),), zeros, momentum=0.0)
        return apply(OnnxOperation(self.size, self.features), x, file)


@dataclass(frozen=True)
class OnnxOperation(SharedOperation):
    """The outputs of an ONNX file, its second input, for the first. It has no VJP."""

    size: int
    features: int
    reads_contiguous = True

    def result(self, *inputs: Expression) -> tuple[Shape, np.dtype[np.generic]]:
        return (inputs[0].shape[0], self.features), np.dtype(np.float32)

    def bind_shared(self, inputs: Sequence[Array], out: Array, pool: ThreadPool) -> Call:
        images, file = inputs
        session = session_of(file.astype("<u2").tobytes()[: self.size], pool.threads)

        def compute() -> None:
            out[...] = session(images).reshape(out.shape, copy=False)

        return compute


def read_backbone(path: Path, pixels: PixelOptions) -> tuple[OnnxFeatures, Shape, str, Vector]:
    """Return the layers, the shape of an image, its fitting, and the weights of an ONNX file.

    It must have one input of images and one output of features, of which further axes are
    flattened. Raise ForeignModelError, and MissingExtraError without the extra.
    """
    model, prepared, _, fitting, _ = accept(path, None, pixels, is_base=True)
    spec = model.inputs[0]
    is_image = spec.datatype == "UINT8" and len(spec.shape) == 3
    if not (model.is_batched and is_image and len(model.inputs) == len(model.outputs) == 1):
        raise ForeignModelError(
            f"{path} has the inputs {model.inputs} and {len(model.outputs)} outputs; expected one "
            f"input of images and one output, of which rows are independent, with a free first axis"
        )
    content = prepared[ONNX]
    words = np.pad(content, (0, len(content) % 2)).view("<u2").astype(np.float32)
    return OnnxFeatures(len(content), model.classes), spec.shape, fitting, words
