"""The source of a Darknet net: a configuration, a file of weights, and labels."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dist_net.errors import ModelFileError, PreparedKernelsError
from dist_net.images.labels import read_labels
from dist_net.nets.architecture import DarknetArchitecture
from dist_net.nets.darknet.configuration import Configuration, configuration_text
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import read_weights, unreadable
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nn.inference import prepare
from dist_net.nn.prepared import key_of, map_prepared, write_prepared

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DarknetFiles:
    """A Darknet net: its configuration, its file of weights, and the names of its classes.

    ``configuration`` and ``weights`` are functions, so that ``read`` sees changed files. The file
    ``WEIGHTS.prepared`` keeps the prepared kernels, if it can be written.
    """

    configuration: Callable[[], Configuration]
    weights: Callable[[], Path]
    labels: Path | tuple[str, ...]

    def read(self) -> FoundModel:
        """Return the net. Raise the errors of reading, and ModelFileError if a file changes."""
        configuration, weights = self.configuration(), self.weights()
        network = DarknetNetwork(configuration)
        model = network.model
        labels = self.labels
        if isinstance(labels, Path):
            labels = read_labels(labels, model.classes)
        try:
            key = key_of(model, weights)
        except OSError as error:
            raise unreadable(weights, error) from error
        beside = weights.with_name(f"{weights.name}.prepared")
        file: Path | None = beside
        prepared = map_prepared(beside, key)
        if prepared is None:
            prepared = prepare(model, read_weights(weights, network))
            if key_of(model, weights) != key:
                raise ModelFileError(
                    f"{weights}: changed while it was read; expected a complete file: try again"
                )
            try:
                write_prepared(beside, prepared, key)
            except PreparedKernelsError as error:
                logger.warning("kernels_not_kept reason=%s", error)
                file = None
        architecture = DarknetArchitecture(configuration_text(configuration))
        numbers = partial(read_weights, weights, network)
        return FoundModel(model, architecture, labels, prepared, key, numbers, file=file)
