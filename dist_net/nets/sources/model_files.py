"""The sources of models in files: of runs, Darknet's, ONNX files, and a package of weights."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np

from dist_net.data import Progress
from dist_net.errors import (
    ModelFileError,
    ModelSourceError,
    NotACheckpointError,
    PreparedKernelsError,
)
from dist_net.ground.checkpoint import Checkpoint, how_to_convert
from dist_net.images.labels import read_labels
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import DarknetArchitecture, OnnxArchitecture, PublishedArchitecture
from dist_net.nets.darknet.configuration import Configuration, configuration_text
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import read_weights, unreadable
from dist_net.nets.foreign_onnx import ONNX
from dist_net.nets.onnx_gate import PixelOptions, accept
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord
from dist_net.nets.run_contents import calibrated_weights, calibration_of, read_held_out, read_run
from dist_net.nets.sources.found_model import MODELS, FoundModel, class_names_of, found_model
from dist_net.nn.inference import key_of, map_prepared, prepare, write_prepared

logger = logging.getLogger(__name__)

NO_PRECISION = "{} has no threshold to choose by a precision; expected a run on a folder of images"


@dataclass(frozen=True)
class RunFiles:
    """A run directory or checkpoint file; ``labels`` and ``precision`` replace the run's own."""

    path: Path
    labels: Path | None = None
    progress: Progress | None = None
    trust_recipe: bool = False
    precision: float | None = None

    def read(self) -> FoundModel:
        """Return the model of the current checkpoint; raise the errors of ``contents``."""
        return self.model_of(*self.contents())

    def contents(self) -> tuple[LoadedRecipe, Checkpoint]:
        """Return the recipe and the checkpoint. Raise ModelSourceError; see ``read_run``."""
        try:
            return read_run(self.path, self.trust_recipe)
        except NotACheckpointError as error:
            if self.path.is_dir():
                raise
            expected = how_to_convert(self.path) or f"expected {MODELS}"
            raise ModelSourceError(f"{self.path} is not a model; {expected}") from error

    def model_of(self, loaded: LoadedRecipe, checkpoint: Checkpoint) -> FoundModel:
        """Return the model; raise ModelSourceError, and SettingError for an unproven precision."""
        record = RecipeRecord.from_json(checkpoint.recipe_record)
        has_classes = checkpoint.settings.get("has_classes", True)
        recorded = (record.class_names or None) if has_classes else ()
        weights = calibrated_weights(loaded, checkpoint)
        calibration = calibration_of(checkpoint)
        if self.precision is not None:
            if calibration is None:
                raise ModelSourceError(NO_PRECISION.format(self.path))
            calibration = calibration.promising(self.precision)
        names = class_names_of(loaded, self.labels, recorded, self.progress)
        return replace(
            found_model(loaded, weights, names, record.fitting),
            unknown_below=calibration.threshold if calibration else 0.0,
            held_out=partial(read_held_out, self.path, loaded),
        )


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
