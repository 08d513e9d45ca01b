"""Shapes, axes and sizes are integers, Python's or NumPy's; anything else is refused at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from dist_net import autodiff as ad
from dist_net import nn
from dist_net.errors import DistNetError
from dist_net.nn.inference import Inference, prepare
from naming import naming

X = ad.variable("x", (4, 4))
MAP = ad.variable("map", (2, 6, 6, 4))
KERNEL = ad.variable("kernel", (3, 3, 2, 2))
LABELS = ad.variable("labels", (4,), np.uint8)
MODEL = nn.Model(nn.Dense(2), (3,), input_dtype="f4")
WEIGHTS = MODEL.layout.initial(np.random.default_rng(0))
GENERATOR = np.random.default_rng(0)


def infer(**options: Any) -> None:
    Inference(MODEL, prepare(MODEL, WEIGHTS), **options).close()


TAKING_ONE: dict[str, Callable[[Any], object]] = {  # 2 is right for all of them
    "variable": lambda n: ad.variable("y", (n,)),
    "uniform": lambda n: ad.uniform((n,), GENERATOR),
    "reshape": lambda n: ad.reshape(X, (n, 8)),
    "broadcast_to": lambda n: ad.broadcast_to(X, (n, 4, 4)),
    "transpose": lambda n: ad.transpose(MAP, (0, n, 1, 3)),
    "sum": lambda n: ad.sum(MAP, n),
    "mean": lambda n: ad.mean(MAP, (0, n)),
    "max": lambda n: ad.max(MAP, [n]),
    "argmax": lambda n: ad.argmax(MAP, n),
    "argmin": lambda n: ad.argmin(MAP, n),
    "cumsum": lambda n: ad.cumsum(MAP, n),
    "sort": lambda n: ad.sort(MAP, n),
    "top_k": lambda n: ad.top_k(MAP, n)[0],
    "prod": lambda n: ad.prod(MAP, n),
    "var": lambda n: ad.var(MAP, (0, n)),
    "take": lambda n: ad.take(MAP, [0], n),
    "stack": lambda n: ad.stack([MAP, MAP], n),
    "split": lambda n: ad.split(MAP, n),
    "split at": lambda n: ad.split(MAP, [1, n], 1),
    "pad": lambda n: ad.pad(MAP, n),
    "concatenate": lambda n: ad.concatenate([MAP, MAP], n),
    "index": lambda n: MAP[:, n],
    "start": lambda n: X[n:],
    "stop": lambda n: X[:n],
    "step": lambda n: X[::n],
    "conv2d groups": lambda n: ad.conv2d(MAP, KERNEL, groups=n),
    "conv2d stride": lambda n: ad.conv2d(MAP, KERNEL, n, groups=2),
    "conv2d padding": lambda n: ad.conv2d(MAP, KERNEL, 1, n, groups=2),
    "conv2d paddings": lambda n: ad.conv2d(MAP, KERNEL, 1, ((n, n), (0, n)), groups=2),
    "max_pool": lambda n: ad.max_pool(MAP, n),
    "average_pool": lambda n: ad.average_pool(MAP, (n, 1), (1, n)),
    "one_hot": lambda n: nn.one_hot(LABELS, n),
    "Dense": lambda n: nn.Dense(n)(X, nn.Scope()),
    "Conv2D filters": lambda n: nn.Conv2D(n, 3)(MAP, nn.Scope()),
    "Conv2D groups": lambda n: nn.Conv2D(4, 3, groups=n)(MAP, nn.Scope()),
    "Conv1D": lambda n: nn.Conv1D(n, n, padding=n)(MAP[0], nn.Scope()),
    "MaxPool1D": lambda n: nn.MaxPool1D(n, n)(MAP[0], nn.Scope()),
    "GroupNorm": lambda n: nn.GroupNorm(n)(MAP, nn.Scope()),
    "Conv2D size": lambda n: nn.Conv2D(4, n)(MAP, nn.Scope()),
    "Embedding count": lambda n: nn.Embedding(n, 3)(LABELS, nn.Scope()),
    "Embedding width": lambda n: nn.Embedding(3, n)(LABELS, nn.Scope()),
    "heads": lambda n: nn.MultiHeadAttention(n)(MAP[0], nn.Scope()),
    "MaxPool": lambda n: nn.MaxPool(n)(MAP, nn.Scope()),
    "parameter": lambda n: nn.Scope().parameter("p", (n,), nn.zeros),
    "buffer": lambda n: nn.Scope().buffer("b", (n,), nn.zeros),
    "Model": lambda n: nn.Model(nn.Dense(2), (n,), input_dtype="f4"),
    "compile_training": lambda n: MODEL.compile_training(n, GENERATOR),
    "Predictor": lambda n: nn.Predictor(MODEL, WEIGHTS, n),
    "batch_size": lambda n: infer(batch_size=n),
    "threads": lambda n: infer(threads=n),
}


@pytest.mark.parametrize("take", TAKING_ONE.values(), ids=TAKING_ONE)
def test_an_integer_of_either_kind_is_taken_and_nothing_else(take: Callable[[Any], object]) -> None:
    for number in (2, np.int64(2), np.uint8(2)):
        take(number)
    for other in (2.0, 2.7, np.float64(2), float("nan"), "two"):
        with pytest.raises(DistNetError):
            take(other)


@pytest.mark.parametrize("number", [0, -1])
def test_batches_and_threads_are_one_or_more(number: int) -> None:
    for name in ("Predictor", "batch_size", "threads"):
        with pytest.raises(DistNetError, match=naming(number, 1)):
            TAKING_ONE[name](number)


def test_a_shape_is_a_sequence() -> None:
    for take in (lambda n: ad.variable("y", n), lambda n: ad.reshape(X, n)):
        with pytest.raises(DistNetError, match=naming("shape")):
            take(16)


def test_numbers_of_numpy_make_the_layout_that_python_s_make() -> None:
    ours, theirs = (nn.Model(nn.Dense(n(2)), (n(3),), input_dtype="f4") for n in (int, np.int64))
    assert repr(theirs.layout.shapes) == repr(ours.layout.shapes)
