"""Optimizers and learning-rate schedules: arrays in, arrays out."""

# fmt: off
# isort: off
from dist_net.optim.optimizers import (
    OPTIMIZERS, SGD, AdaGrad, Adam, AdamW, ConstantRate, Cosine, LearningRate, Momentum, Nesterov,
    RMSprop, Schedule, StepDecay, WarmUp, optimizer_named, schedule_named,
)
from dist_net.optim.rule import Optimizer, UpdateRule, start_rule

__all__ = [
    "OPTIMIZERS", "SGD", "AdaGrad", "Adam", "AdamW", "ConstantRate", "Cosine", "LearningRate",
    "Momentum", "Nesterov", "Optimizer", "RMSprop", "Schedule", "StepDecay", "UpdateRule", "WarmUp",
    "optimizer_named", "schedule_named", "start_rule",
]
