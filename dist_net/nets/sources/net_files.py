"""The sources of nets of other programs: Darknet's files, ONNX files, and a package of weights."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from dist_net.errors import ModelFileError, PreparedKernelsError
from dist_net.images.labels import read_labels
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import DarknetArchitecture, OnnxArchitecture, PublishedArchitecture
from dist_net.nets.darknet.configuration import Configuration, configuration_text
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import read_weights, unreadable
from dist_net.nets.foreign_onnx import ONNX
from dist_net.nets.onnx_gate import PixelOptions, accept
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


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file; ``labels`` and ``pixels`` replace its metadata."""

    path: Path
    labels: Path | None
    pixels: PixelOptions

    def read(self) -> FoundModel:
        """Return the model; see ``accept``."""
        model, prepared, names, fitting, unknown_below = accept(self.path, self.labels, self.pixels)
        return FoundModel(
            model,
            OnnxArchitecture(model.rows_alone),
            names,
            prepared,
            sha256(prepared[ONNX].data).hexdigest(),
            lambda: np.empty(0, np.float32),
            fitting=fitting,
            unknown_below=unknown_below,
        )


@dataclass(frozen=True)
class PretrainedNet:
    """EfficientNet-Lite0, its weights from a package; ``labels`` replace ImageNet's."""

    labels: Path | None

    def read(self) -> FoundModel:
        """Return the net; raise MissingExtraError if its weights are not installed."""
        model, weights = lite0.model(), lite0.read_weights()
        names = lite0.imagenet_labels()
        if self.labels is not None:
            names = read_labels(self.labels, model.classes)
        architecture = PublishedArchitecture(lite0.NAME)
        return FoundModel.of(model, weights, architecture, names, lite0.FITTING)
