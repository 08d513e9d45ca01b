"""A reverse-mode automatic differentiation engine in NumPy: expressions, gradients, plans.

Build expressions from variables, differentiate them, compile the results into a plan, and run it.
To learn how it works, read ``expression.py`` first: it is part 1 of 5.

>>> import numpy as np
>>> from dist_net import autodiff as ad
>>> x = ad.variable("x", (3,))
>>> y = ad.sum(ad.square(x))
>>> (dy_dx,) = ad.gradients(y, [x])
>>> ad.evaluate([y, dy_dx], x=np.array([1, 2, 3], np.float32))
[array(14., dtype=float32), array([2., 4., 6.], dtype=float32)]
"""

# fmt: off
# isort: off
from dist_net.autodiff.arrays import Array, Shape
from dist_net.autodiff.compiler.plan import BoundPlan, Plan, compile, evaluate
from dist_net.autodiff.expression import Expression, Operation, apply, constant, uniform, variable
from dist_net.autodiff.gradients import gradients
from dist_net.autodiff.operations.classification import cross_entropy_of_logits, log_softmax
from dist_net.autodiff.operations.convolution import conv2d, conv2d_transpose
from dist_net.autodiff.operations.elementwise import (
    absolute, add, astype, clip, cos, divide, equal, erf, exp, expm1, greater, greater_equal,
    leaky_relu, less, less_equal, log, log1p, logical_and, logical_not, logical_or, maximum,
    minimum, multiply, negative, power, relu, sigmoid, sign, silu, sin, softplus, sqrt, square,
    subtract, tanh, where,
)
from dist_net.autodiff.operations.fused import gelu, softmax
from dist_net.autodiff.operations.indexing import take
from dist_net.autodiff.operations.matmul import einsum, matmul
from dist_net.autodiff.operations.normalization import batch_normalize
from dist_net.autodiff.operations.pooling import average_pool, max_pool
from dist_net.autodiff.operations.records import record
from dist_net.autodiff.operations.reduction import broadcast_to, cumsum, mean, sum
from dist_net.autodiff.operations.selection import (
    argmax, argmin, argsort, masked_mean, max, min, prod, sort, std, stop_gradient,
    take_along_axis, top_k, var,
)
from dist_net.autodiff.operations.shaping import (
    concatenate, matrix_transpose, pad, reshape, split, stack, transpose, zeros_around,
)

__all__ = [
    "Array", "BoundPlan", "Expression", "Operation", "Plan", "Shape", "absolute", "add", "apply",
    "argmax", "argmin", "argsort", "astype", "average_pool", "batch_normalize", "broadcast_to",
    "clip", "compile", "concatenate", "constant", "conv2d", "conv2d_transpose", "cos",
    "cross_entropy_of_logits", "cumsum", "divide", "einsum", "equal", "erf", "evaluate", "exp",
    "expm1", "gelu", "gradients", "greater", "greater_equal", "leaky_relu", "less", "less_equal",
    "log", "log1p", "log_softmax", "logical_and", "logical_not", "logical_or", "masked_mean",
    "matmul", "matrix_transpose", "max", "max_pool", "maximum", "mean", "min", "minimum",
    "multiply", "negative", "pad", "power", "prod", "record", "relu", "reshape", "sigmoid", "sign",
    "silu", "sin", "softmax", "softplus", "sort", "split", "sqrt", "square", "stack", "std",
    "stop_gradient", "subtract", "sum", "take", "take_along_axis", "tanh", "top_k", "transpose",
    "uniform", "var", "variable", "where", "zeros_around",
]
