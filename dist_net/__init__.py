"""Train neural nets across processes and machines, with NumPy and ZeroMQ.

``dist_net.autodiff``: expressions, gradients, plans. ``dist_net.nn``: layers, losses, models.
``dist_net.optim``: update rules and schedules. ``dist_net.data``: datasets. ``Recipe``: what to
train, for ``dist-net train`` and ``dist_net.cluster``. ``fit_picture``: fits a picture to a
recipe's net. ``Client``: sends requests to an inference pool.
"""

from typing import TYPE_CHECKING, Any

from dist_net.pictures import fit_picture
from dist_net.recipes.recipe import LoadedRecipe, Recipe, load_recipe

if TYPE_CHECKING:
    from dist_net.serving.client.client import Client

__all__ = ["Client", "LoadedRecipe", "Recipe", "fit_picture", "load_recipe"]


def __getattr__(name: str) -> Any:
    """Imports `Client` on first use, since nothing else here needs ZeroMQ."""
    if name == "Client":
        from dist_net.serving.client.client import Client

        return Client
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
