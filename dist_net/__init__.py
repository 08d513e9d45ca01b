"""Train neural nets across processes and machines, with NumPy and ZeroMQ.

``dist_net.autodiff``: expressions, gradients, plans. ``dist_net.nn``: layers, losses, models.
``dist_net.optim``: update rules and schedules. ``dist_net.data``: datasets. ``Recipe``: what to
train, for ``dist-net train`` and for ``dist_net.cluster``.
"""

from dist_net.recipe import LoadedRecipe, Recipe, load_recipe

__all__ = ["LoadedRecipe", "Recipe", "load_recipe"]
