"""An ONNX file as layers without gradients: the base of a net that is trained on its features.

The file is a buffer of the net, so that checkpoints, prepared arrays and workers on other hosts
contain it: two bytes to a number, since every float32 of a checkpoint must be finite.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from dist_net.autodiff import Expression
from dist_net.autodiff.arrays import Array, Call, Shape
from dist_net.autodiff.expression import SharedOperation, apply
from dist_net.autodiff.kernels.thread_pool import ThreadPool
from dist_net.errors import ForeignModelError
from dist_net.nets.foreign_onnx import (
    OnnxSession,
    PixelOptions,
    accept_pixels,
    checked_proto,
    interface_of,
    prepared_bytes,
    probed,
    read_proto,
)
from dist_net.nn import Scope, zeros
from dist_net.vector import Vector


@dataclass(frozen=True)
class OnnxFeatures:
    """Pixels, (N, H, W, C) uint8, to features, (N, features), by a file of ``size`` bytes."""

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
        session = _session(file.astype("<u2").tobytes()[: self.size], pool.threads)

        def compute() -> None:
            out[...] = session(images)

        return compute


@lru_cache(maxsize=2)
def _session(content: bytes, threads: int) -> OnnxSession:
    """Return the session of a file's content, shared by the plans of all batch sizes."""
    path = Path("base.onnx")
    model = interface_of(checked_proto(content, path, has_data_beside=False), path)
    return OnnxSession(model, prepared_bytes(content), threads)


def read_backbone(path: Path, pixels: PixelOptions) -> tuple[OnnxFeatures, Shape, Vector]:
    """Return the layers, the shape of an image, and the weights of an ONNX file.

    It must have one input of images and one output of features, of which further axes are
    flattened. Raise ForeignModelError, and MissingExtraError without the extra.
    """
    proto = read_proto(path)
    accept_pixels(proto, pixels)
    model = interface_of(proto, path)
    content = proto.SerializeToString()
    model, _ = probed(model, prepared_bytes(content))
    spec = model.inputs[0]
    is_image = spec.datatype == "UINT8" and len(spec.shape) == 3
    if not (model.is_batched and is_image and len(model.inputs) == len(model.outputs) == 1):
        shapes = [f"{each.name} {each.datatype} {list(each.shape)}" for each in model.inputs]
        raise ForeignModelError(
            f"{path} has {', '.join(shapes)} and {len(model.outputs)} outputs; expected one input "
            f"of images and one output, of which rows are independent, with a free first axis"
        )
    words = np.frombuffer(content + bytes(len(content) % 2), "<u2").astype(np.float32)
    return OnnxFeatures(len(content), model.classes), spec.shape, words
