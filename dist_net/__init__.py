"""Train neural nets across processes and machines, with NumPy and ZeroMQ.

``fit``: trains a model in this process. ``train``: trains a recipe by processes on this host, and
gives a ``Run``. ``LocalCluster``: a cluster in threads, for tests and notebooks. ``Recipe``: what
to train. ``fit_picture``: fits a picture to a recipe's net. ``Client``: sends requests to an
inference pool.

``dist_net.autodiff``: expressions, gradients, plans. ``dist_net.nn``: layers, losses, models.
``dist_net.optim``: update rules and schedules. ``dist_net.data``: datasets.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from dist_net.pictures import fit_picture
from dist_net.recipes.recipe import LoadedRecipe, Recipe, load_recipe

if TYPE_CHECKING:
    from dist_net.cluster.in_process import LocalCluster
    from dist_net.cluster.trained_run import Run, train
    from dist_net.serving.client.client import Client
    from dist_net.training.single_process import fit

__all__ = [
    "Client",
    "LoadedRecipe",
    "LocalCluster",
    "Recipe",
    "Run",
    "fit",
    "fit_picture",
    "load_recipe",
    "train",
]

IMPORTED_ON_FIRST_USE = {
    "Client": "dist_net.serving.client.client",
    "LocalCluster": "dist_net.cluster.in_process",
    "Run": "dist_net.cluster.trained_run",
    "fit": "dist_net.training.single_process",
    "train": "dist_net.cluster.trained_run",
}
"""Where the names are from that need more than NumPy, such as ZeroMQ."""


def __getattr__(name: str) -> Any:
    """Imports a name of ``IMPORTED_ON_FIRST_USE``."""
    if name in IMPORTED_ON_FIRST_USE:
        return getattr(import_module(IMPORTED_ON_FIRST_USE[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
