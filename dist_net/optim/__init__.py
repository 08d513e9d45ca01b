"""Optimizers and learning-rate schedules: arrays in, arrays out."""

from collections.abc import Mapping
from types import MappingProxyType

from dist_net.errors import UnknownOptimizerError
from dist_net.optim.adagrad import AdaGrad
from dist_net.optim.adam import Adam
from dist_net.optim.averages import ArrayShapes, start_rule
from dist_net.optim.rule import Optimizer, UpdateRule, Vector
from dist_net.optim.schedules import Constant, Cosine, Schedule, Step, WarmUp
from dist_net.optim.sgd import SGD, Momentum, Nesterov

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AdaGrad",
    "Adam",
    "ArrayShapes",
    "Constant",
    "Cosine",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "Schedule",
    "Step",
    "UpdateRule",
    "Vector",
    "WarmUp",
    "optimizer_named",
    "start_rule",
]

OPTIMIZERS: Mapping[str, Optimizer] = MappingProxyType(
    {
        "sgd": SGD(),
        "momentum": Momentum(),
        "nesterov": Nesterov(),
        "adam": Adam(),
        "adagrad": AdaGrad(),
    }
)
"""Every optimizer by the name that the command line uses, with its default settings."""


def optimizer_named(name: str) -> Optimizer:
    """Return the optimizer with its default settings; raises ``UnknownOptimizerError``."""
    if name not in OPTIMIZERS:
        raise UnknownOptimizerError(
            f"unknown optimizer {name!r}: expected one of {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]
