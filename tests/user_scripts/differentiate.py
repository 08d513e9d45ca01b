"""The engine by itself: an expression, its gradient, a plan, and descent."""

import numpy as np
from numpy.typing import NDArray

from dist_net import autodiff as ad
from dist_net.optim import SGD, LearningRate, Optimizer, optimizer_named

x = ad.variable("x", (4, 3))
w = ad.variable("w", (3,))
loss = ad.mean(ad.square(ad.matmul(x, ad.reshape(w, (3, 1))) - 1))
(gradient,) = ad.gradients(loss, [w])
plan: ad.Plan = ad.compile([loss, gradient])
values: NDArray[np.float32] = np.ones((4, 3), np.float32)
weights = np.zeros(3, np.float32)
bound = plan.bind({"x": values, "w": weights})
for _step in range(10):
    value, slope = bound.run()
    weights -= 0.1 * slope
chosen: Optimizer = optimizer_named("adam")
print(ad.evaluate([loss], x=values, w=weights), chosen, SGD(), LearningRate.__name__)
