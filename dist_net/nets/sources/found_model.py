"""A model as its source holds it at a moment, and the sources in files.

They are the files of runs, Darknet's, ONNX files, and a package of weights.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Self

import numpy as np

from dist_net.autodiff.arrays import Shape
from dist_net.data import CLASS_NAMES, Dataset, Progress
from dist_net.errors import (
    ExportError,
    ModelFileError,
    ModelSourceError,
    NotACheckpointError,
    PreparedKernelsError,
)
from dist_net.ground.checkpoint import Checkpoint, how_to_convert
from dist_net.ground.vector import Vector
from dist_net.images.fitting import is_image_shape
from dist_net.images.labels import read_labels, require_labels
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import (
    Architecture,
    DarknetArchitecture,
    OnnxArchitecture,
    PublishedArchitecture,
)
from dist_net.nets.darknet.configuration import Configuration, configuration_text
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import PUBLISHED
from dist_net.nets.darknet.weights import read_weights, unreadable
from dist_net.nets.foreign_onnx import ONNX, ForeignModel
from dist_net.nets.onnx_gate import LETTERBOX, PixelOptions, accept
from dist_net.nets.recipe_origins import origin_of
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord
from dist_net.nets.run_contents import calibrated_weights, calibration_of, read_held_out, read_run
from dist_net.nets.tensor_specs import DATATYPES, INPUT, Specs, TensorSpec
from dist_net.nn import Model, cross_entropy_of_logits
from dist_net.nn.inference import (
    Prepared,
    key_of,
    key_of_vector,
    map_prepared,
    prepare,
    write_prepared,
)
from dist_net.nn.losses import of_label

MODELS = (
    f"{lite0.NAME}, the name of a published classifier ({', '.join(PUBLISHED)}), the directory or "
    f"checkpoint of a run, a file of Model.save, an .onnx file, or a .cfg file with --weights FILE "
    f"and --labels FILE"
)


@dataclass(frozen=True)
class FoundModel:
    """A model that was read from its source.

    ``labels`` is empty if the model predicts numbers instead of classes. ``recipe`` is the name of
    the recipe that trained it, and ``fitting`` the method by which images are resized. ``weights``
    returns the weights and may read them again; ``prepared`` is made from them, and ``key``
    changes with them. ``file`` stores ``prepared`` under that key, if a file does. ``version`` is
    the parameter server's, for a model in training. A class less probable than ``unknown_below``
    is reported as unknown. ``held_out`` returns the images that the run keeps for evaluation, and
    raises RunDirectoryError if they are damaged.
    """

    model: Model | ForeignModel
    architecture: Architecture
    labels: tuple[str, ...]
    prepared: Prepared
    key: str
    weights: Callable[[], Vector]
    has_logits: bool = False
    recipe: str = ""
    file: Path | None = None
    fitting: str = "pad"
    version: int | None = None
    unknown_below: float = 0.0
    held_out: Callable[[], Dataset | None] = lambda: None

    def __post_init__(self) -> None:
        if self.labels:
            require_labels(self.labels, self.model.classes)

    @classmethod
    def of(
        cls,
        model: Model,
        weights: Vector,
        architecture: Architecture,
        labels: tuple[str, ...],
        fitting: str,
        recipe: str = "",
    ) -> Self:
        """Return a model of dist_net with these weights, prepared."""
        return cls(
            model,
            architecture,
            labels,
            prepare(model, weights),
            key_of_vector(model, weights),
            lambda: weights,
            bool(labels) and of_label(model.loss) is cross_entropy_of_logits,
            recipe,
            fitting=fitting,
        )

    @property
    def takes_images(self) -> bool:
        """Whether images can be converted to its inputs; a recipe's net must have uint8 inputs."""
        published = DarknetArchitecture | PublishedArchitecture
        is_known = isinstance(self.architecture, published) or self.model.input_dtype == np.uint8
        return (is_known or self.fitting == LETTERBOX) and is_image_shape(self.model.input_shape)

    @property
    def is_batched(self) -> bool:
        return not isinstance(self.model, ForeignModel) or self.model.is_batched

    @property
    def own_model(self) -> Model:
        """The model of dist_net. Raise ExportError for an ONNX file."""
        if isinstance(self.model, ForeignModel):
            raise ExportError("the model is an ONNX file already; expected a model of dist_net")
        return self.model

    @property
    def specs(self) -> tuple[Specs, Specs]:
        """The inputs and outputs, by the names that the Open Inference Protocol uses."""
        model = self.model
        if isinstance(model, ForeignModel):
            return model.inputs, model.outputs
        outputs = model.output_fields
        if not model.output_dtype.names:
            name = "probabilities" if self.labels else "values"
            outputs = {name: (model.output_dtype, (model.classes,))}
        return _specs(model.input_fields), _specs(outputs)


def _specs(fields: Mapping[str, tuple[np.dtype[Any], Shape]]) -> Specs:
    return tuple(
        TensorSpec(name or INPUT, DATATYPES[dtype], shape)
        for name, (dtype, shape) in fields.items()
    )


def class_names_of(
    loaded: LoadedRecipe,
    labels: Path | None,
    recorded: tuple[str, ...] | None,
    progress: Progress | None,
) -> tuple[str, ...]:
    """Return the names of a recipe's classes: from ``labels``, the run's record, or the dataset.

    ``recorded`` is empty without classes, and None if no names are known, as in runs of early
    releases; a user's own dataset is loaded to get them.
    """
    recipe = loaded.recipe
    if recorded == ():
        if labels is not None:
            raise ModelSourceError(
                f"{labels} names classes, but {loaded.name} predicts numbers; expected no --labels"
            )
        return ()
    if labels is not None:
        return read_labels(labels, recipe.model.classes)
    if recorded is not None:
        return recorded
    if isinstance(recipe.dataset, str):
        return CLASS_NAMES[recipe.dataset]
    return recipe.load_dataset(progress).class_names


def found_model(
    loaded: LoadedRecipe, weights: Vector, names: tuple[str, ...], fitting: str = ""
) -> FoundModel:
    """Return the model of a recipe with these weights and names of its classes."""
    model = loaded.recipe.model
    architecture = origin_of(loaded.reference).architecture_of(loaded)
    fitting = fitting or loaded.recipe.fitting
    return FoundModel.of(model, weights, architecture, names, fitting, loaded.name)


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
