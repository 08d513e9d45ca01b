"""A model as it is found at its source; and the source that is a Darknet net's files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dist_net.darknet.configuration import Configuration, configuration_text
from dist_net.darknet.labels import read_labels, require_labels
from dist_net.darknet.network import DarknetNetwork
from dist_net.models.classifier import prepared_kernels
from dist_net.nn import Model
from dist_net.nn.inference import Prepared
from dist_net.recipes.recipe import LoadedRecipe


@dataclass(frozen=True)
class FoundModel:
    """A model as it is at its source.

    ``configuration`` is the text of a Darknet net; else ``recipe`` is what it was trained by, on
    pictures of that ``fitting``.
    ``key`` changes with the weights. ``file`` is where ``prepared`` is kept under that key, None
    if nowhere yet. ``version``: the parameter server's, of a model that is being trained.
    """

    model: Model
    labels: tuple[str, ...]
    prepared: Prepared
    key: str
    has_logits: bool = False
    configuration: str = ""
    recipe: LoadedRecipe | None = None
    file: Path | None = None
    fitting: str = "pad"
    version: int | None = None


class DarknetFiles:
    """A Darknet net: its configuration, the file of its weights, the names of its classes.

    Each is a function, so that reading again sees what has changed.
    """

    def __init__(
        self,
        configuration: Callable[[], Configuration],
        weights: Callable[[], Path],
        labels: Path | tuple[str, ...],
    ) -> None:
        self._configuration = configuration
        self._weights = weights
        self._labels = labels
        self._built: tuple[Configuration, DarknetNetwork, Model] | None = None

    def read(self) -> FoundModel:
        """The net with the weights that the file has now; raises what reading the files does."""
        configuration, weights = self._configuration(), self._weights()
        network, model = self._model_of(configuration)
        labels = self._labels
        if isinstance(labels, Path):
            labels = read_labels(labels, model.classes)
        require_labels(labels, model.classes)
        kept = prepared_kernels(model, network, weights)
        return FoundModel(
            model,
            labels,
            kept.prepared,
            kept.key,
            configuration=configuration_text(configuration),
            file=kept.file,
        )

    def _model_of(self, configuration: Configuration) -> tuple[DarknetNetwork, Model]:
        """Weights change more often than what they are of, so that is built once."""
        if self._built is None or self._built[0] != configuration:
            network = DarknetNetwork(configuration)
            model = Model(network, network.input_shape, input_dtype=np.float32)
            self._built = configuration, network, model
        return self._built[1:]
