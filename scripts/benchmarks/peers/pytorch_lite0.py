"""EfficientNet-Lite0 in PyTorch, eager: on the tensors of the published file, by their names.

Maps lie channels last, PyTorch's faster choice. For inference batch norm is folded into the
filters, by PyTorch's own function for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.peers import lite0_task
from benchmarks.peers.orders import Peer
from dist_net.nets import efficientnet_lite0 as lite0

MOMENTUM, EPSILON = 0.01, 1e-3


class TorchLite0:
    """The net: images (N, 224, 224, 3) uint8, as a tensor, to logits (N, classes).

    ``observes``: batch norm uses the minibatch's mean and variance, and keeps moving averages.
    """

    def __init__(self, observes: bool = False) -> None:
        import torch

        tensors = torch.load(lite0.weights_file(), weights_only=True)
        self.tensors: dict[str, Any] = {
            name: each.contiguous(memory_format=torch.channels_last) if each.ndim == 4 else each
            for name, each in tensors.items()
        }
        self._observes = observes
        self._folded: dict[str, tuple[Any, Any]] = {}

    def parameters(self) -> Iterator[Any]:
        """What is trained."""
        for name, tensor in self.tensors.items():
            if not name.endswith(("running_mean", "running_var", "num_batches_tracked")):
                yield tensor.requires_grad_()

    def fold(self) -> None:
        """Folds batch norm into the convolutions, for inference."""
        from torch.nn.utils.fusion import fuse_conv_bn_weights

        for name in [*self.tensors]:
            if name.endswith("running_mean"):
                norm = name.removesuffix(".running_mean")
                kernel = self.tensors[f"{convolution_before(norm)}.weight"]
                mean, variance, gamma, beta = self._of_norm(norm)
                folded = fuse_conv_bn_weights(kernel, None, mean, variance, EPSILON, gamma, beta)
                self._folded[norm] = tuple(each.detach() for each in folded)

    def __call__(self, images: Any) -> Any:
        from torch.nn import functional

        x = images.permute(0, 3, 1, 2).float().sub_(127).div_(128)
        x = self._normalized(x, "_bn0", stride=2)
        for index, block in enumerate(lite0.blocks()):
            x = self._block(x, f"_blocks.{index}.", block)
        x = self._normalized(x, "_bn1").mean((2, 3))
        return functional.linear(x, self.tensors["_fc.weight"], self.tensors["_fc.bias"])

    def _block(self, x: Any, name: str, block: lite0.InvertedResidual) -> Any:
        y = self._normalized(x, f"{name}_bn0") if block.expansion > 1 else x
        y = self._normalized(y, f"{name}_bn1", block.stride, groups=y.shape[1])
        y = self._normalized(y, f"{name}_bn2", is_linear=True)
        return x + y if x.shape == y.shape else y

    def _normalized(
        self, x: Any, norm: str, stride: int = 1, groups: int = 1, is_linear: bool = False
    ) -> Any:
        """The convolution before a batch norm, that, and the activation."""
        from torch.nn import functional

        if norm in self._folded:
            y = convolved(x, *self._folded[norm], stride, groups)
        else:
            kernel = self.tensors[f"{convolution_before(norm)}.weight"]
            y = convolved(x, kernel, None, stride, groups)
            statistics = self._of_norm(norm)
            y = functional.batch_norm(y, *statistics, self._observes, MOMENTUM, EPSILON)
        return y if is_linear else functional.relu6(y, inplace=True)

    def _of_norm(self, norm: str) -> tuple[Any, ...]:
        kinds = ("running_mean", "running_var", "weight", "bias")
        return tuple(self.tensors[f"{norm}.{kind}"] for kind in kinds)


def convolution_before(norm: str) -> str:
    """The name of the convolution that a batch norm follows."""
    *module, name = norm.split(".")
    of_block = {"_bn0": "_expand_conv", "_bn1": "_depthwise_conv", "_bn2": "_project_conv"}
    of_net = {"_bn0": "_conv_stem", "_bn1": "_conv_head"}
    return ".".join([*module, (of_block if module else of_net)[name]])


def convolved(x: Any, kernel: Any, bias: Any, stride: int, groups: int) -> Any:
    """With TensorFlow's SAME padding, of a square map: what is odd goes below and to the right."""
    from torch.nn import functional

    size, side = kernel.shape[2], x.shape[2]
    padding = max((-(-side // stride) - 1) * stride + size - side, 0)
    before, is_odd = divmod(padding, 2)
    if is_odd:
        x = functional.pad(x, (before, before + 1, before, before + 1))
        before = 0
    return functional.conv2d(x, kernel, bias, stride, before, groups=groups)


def load(_directory: Path, batch: int, threads: int) -> Callable[[], lite0_task.Logits]:
    """A function whose run gives the logits (batch, classes) of the task's images."""
    import torch

    network = TorchLite0()
    network.fold()
    images = torch.from_numpy(lite0_task.images(batch))

    def run() -> lite0_task.Logits:
        torch.set_num_threads(threads)
        with torch.inference_mode():
            logits: lite0_task.Logits = network(images).numpy()
        return logits

    return run


if __name__ == "__main__":
    Peer("torch", load).obey()
