"""Optimizers and learning-rate schedules: arrays in, arrays out."""

from dist_net.optim.optimizers import (
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    Momentum,
    Nesterov,
    optimizer_named,
    parse_optimizer,
)
from dist_net.optim.rule import ArrayShapes, Optimizer, UpdateRule, start_rule
from dist_net.optim.schedules import ConstantRate, Cosine, Schedule, StepDecay, WarmUp

__all__ = [
    "OPTIMIZERS",
    "SGD",
    "AdaGrad",
    "Adam",
    "AdamW",
    "ArrayShapes",
    "ConstantRate",
    "Cosine",
    "Momentum",
    "Nesterov",
    "Optimizer",
    "Schedule",
    "StepDecay",
    "UpdateRule",
    "WarmUp",
    "optimizer_named",
    "parse_optimizer",
    "start_rule",
]
