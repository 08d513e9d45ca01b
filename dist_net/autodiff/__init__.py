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

from dist_net.autodiff.arrays import Array, Shape
from dist_net.autodiff.compiler.plan import BoundPlan, Plan, compile, evaluate
from dist_net.autodiff.expression import Expression, Operation, apply, constant, uniform, variable
from dist_net.autodiff.gradients import gradients
from dist_net.autodiff.operations.classification import (
    argmax,
    cross_entropy_of_logits,
    gather,
    log_softmax,
    softmax,
)
from dist_net.autodiff.operations.convolution import conv2d
from dist_net.autodiff.operations.elementwise import (
    add,
    divide,
    equal,
    exp,
    expm1,
    greater,
    greater_equal,
    less,
    less_equal,
    log,
    multiply,
    negative,
    sigmoid,
    sqrt,
    square,
    subtract,
    tanh,
)
from dist_net.autodiff.operations.matmul import matmul
from dist_net.autodiff.operations.normalization import batch_normalize
from dist_net.autodiff.operations.pooling import average_pool, max_pool
from dist_net.autodiff.operations.records import record
from dist_net.autodiff.operations.reduction import broadcast_to, mean, sum
from dist_net.autodiff.operations.selection import (
    astype,
    clip,
    leaky_relu,
    logical_not,
    max,
    maximum,
    minimum,
    stop_gradient,
    where,
)
from dist_net.autodiff.operations.shaping import (
    concatenate,
    matrix_transpose,
    reshape,
    transpose,
    zeros_around,
)
