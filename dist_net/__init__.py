"""Train neural nets across processes and machines, with NumPy and ZeroMQ.

``fit``: train a model in this process; ``EarlyStopping`` and others: its callbacks.
``train``: train a recipe with processes on this host, and return a ``Run``. ``load``: return a
``LoadedModel`` from any source. ``join``: take part in a run by a loop of
your own. ``LocalCluster``: a cluster in threads, for tests and notebooks. ``Recipe``: what to
train. ``fit_image``: resize an image to a recipe's net. ``Client``: send requests to an inference
pool. ``export_model``: write a model as ONNX. ``show``: the page of a run, in a notebook.

``dist_net.autodiff``: expressions, gradients, plans. ``dist_net.nn``: layers, losses, models.
``dist_net.optim``: update rules and schedules. ``dist_net.data``: datasets.
"""

from typing import TYPE_CHECKING

# fmt: off
__all__ = [
    "Client", "EarlyStopping", "LoadedModel", "LoadedRecipe", "LocalCluster", "ModelCheckpoint",
    "Recipe", "ReduceLROnPlateau", "Run", "__version__", "autodiff", "data", "export_model", "fit",
    "fit_image", "join", "load", "load_recipe", "nn", "optim", "show", "train",
]
# fmt: on

if TYPE_CHECKING:
    from dist_net import autodiff, data, nn, optim
    from dist_net.ground.release import VERSION as __version__
    from dist_net.images import fit_image
    from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe, load_recipe
    from dist_net.python.loaded_model import LoadedModel, Run, export_model, load
    from dist_net.python.train_by_processes import train
    from dist_net.serving.client.client import Client
    from dist_net.training.run.callbacks import EarlyStopping, ModelCheckpoint, ReduceLROnPlateau
    from dist_net.training.run.custom_loop import join
    from dist_net.training.run.fit import fit
    from dist_net.training.run.local_cluster import LocalCluster
    from dist_net.training.run.run_picture import show
else:
    from importlib import import_module

    NAMES = {
        "dist_net.images": "fit_image",
        "dist_net.python.loaded_model": "LoadedModel Run export_model load",
        "dist_net.nets.recipes.recipe": "LoadedRecipe Recipe load_recipe",
        "dist_net.serving.client.client": "Client",
        "dist_net.python.train_by_processes": "train",
        "dist_net.training.run.callbacks": "EarlyStopping ModelCheckpoint ReduceLROnPlateau",
        "dist_net.training.run.local_cluster": "LocalCluster",
        "dist_net.training.run.custom_loop": "join",
        "dist_net.training.run.fit": "fit",
        "dist_net.training.run.run_picture": "show",
    }
    MODULE_OF = {name: module for module, names in NAMES.items() for name in names.split()}
    """The module of each public name. It is imported on first use: NumPy alone takes 0.1 s."""

    def __getattr__(name):
        """Import a public name or package on first use."""
        if name in MODULE_OF:
            return getattr(import_module(MODULE_OF[name]), name)
        if name == "__version__":
            return import_module("dist_net.ground.release").VERSION
        if name in __all__:
            return import_module(f"dist_net.{name}")
        is_layer = name[0].isupper() and name in import_module("dist_net.nn").__all__
        hint = f"; did you mean dist_net.nn.{name}?" * is_layer
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")

    def __dir__():
        return __all__
