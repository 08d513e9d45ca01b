"""Optimizers and learning-rate schedules: arrays in, arrays out."""

from dist_net.optim.optimizers import (
    OPTIMIZERS,
    SGD,
    AdaGrad,
    Adam,
    AdamW,
    ConstantRate,
    Cosine,
    LearningRate,
    Momentum,
    Nesterov,
    Schedule,
    StepDecay,
    WarmUp,
    optimizer_named,
    parse_optimizer,
)
from dist_net.optim.rule import Optimizer, UpdateRule, start_rule
