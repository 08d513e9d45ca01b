"""The sources of models: a published classifier, a finished or live run, a .cfg or .onnx file.

Each call of a source's ``read`` returns the model as it is then.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from dist_net.autodiff.arrays import Shape
from dist_net.data import CLASS_NAMES, Dataset, Progress
from dist_net.errors import (
    ExportError,
    ModelFileError,
    ModelSourceError,
    NotACheckpointError,
    PreparedKernelsError,
    RecipeError,
    UntrustedRecipeError,
)
from dist_net.images.fitting import is_image_shape
from dist_net.images.labels import read_labels, require_labels
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import (
    Architecture,
    DarknetArchitecture,
    FolderArchitecture,
    LayersArchitecture,
    OnnxArchitecture,
    PublishedArchitecture,
    RecipeArchitecture,
)
from dist_net.nets.darknet.configuration import (
    Configuration,
    configuration_text,
    read_configuration,
)
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import PUBLISHED, fetch_weights, imagenet_labels
from dist_net.nets.darknet.weights import read_weights, unreadable
from dist_net.nets.foreign_onnx import ONNX, ForeignModel
from dist_net.nets.observer import Observer
from dist_net.nets.offered_recipe import OfferedRecipe
from dist_net.nets.onnx_gate import LETTERBOX, PixelOptions, accept, onnx_files
from dist_net.nets.recipes.image_recipe import IMAGES
from dist_net.nets.recipes.recipe import LoadedRecipe, RecipeRecord, built_in_recipe, recipe_names
from dist_net.nets.recipes.recipe_files import is_trusted
from dist_net.nets.run_directory import RunDirectory, suggest_runs
from dist_net.nets.tensor_specs import DATATYPES, INPUT, Specs, TensorSpec
from dist_net.nets.trained_model import (
    MODEL_JSON,
    calibrated_weights,
    calibration_of,
    image_recipe_of,
    load_run_recipe,
    load_trained,
    read_held_out,
)
from dist_net.nn import Model, cross_entropy_of_logits
from dist_net.nn.inference import Prepared, prepare
from dist_net.nn.losses import of_label
from dist_net.nn.model import SAVED
from dist_net.nn.prepared import key_of, key_of_vector, map_prepared, write_prepared
from dist_net.spelling import did_you_mean
from dist_net.vector import Vector
from dist_net.wire.security import CLIENT, PeerKeys
from dist_net.wire.serving_messages import MODEL_NAME
from dist_net.wire.token import TRAINING, JoinToken, is_token
from dist_net.wire.token_exchange import join_by_token

logger = logging.getLogger(__name__)

MODELS = (
    f"{lite0.NAME}, the name of a published classifier ({', '.join(PUBLISHED)}), the directory or "
    f"checkpoint of a run, a file of Model.save, an .onnx file, or a .cfg file with --weights FILE "
    f"and --labels FILE"
)
RUN_PRECISION = "RUN,precision=SHARE: at least this share of a folder's answers is to be right"
LIVE = ("tcp://", "ipc://")
ANSWER_WITHIN_S = 5.0
FILE_NAMES = "weights", "labels"
OPTION_NAMES = (*FILE_NAMES, "precision", *PixelOptions._fields)
NO_PIXEL_OPTIONS = PixelOptions()
NO_PRECISION = "{} has no threshold to choose by a precision; expected a run on a folder of images"


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

    @property
    def takes_images(self) -> bool:
        """Whether images can be converted to its inputs; a recipe's net must have uint8 inputs."""
        published = DarknetArchitecture | PublishedArchitecture
        is_known = isinstance(self.architecture, published) or self.model.input_dtype == np.uint8
        return (is_known or self.fitting == LETTERBOX) and is_image_shape(self.model.input_shape)

    @property
    def is_batched(self) -> bool:
        """Whether rows are computed independently."""
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
        """Return the net with the current weights.

        Raise the errors of reading the files, and ModelFileError if they change meanwhile.
        """
        configuration, weights = self.configuration(), self.weights()
        network = DarknetNetwork(configuration)
        model = Model(network, network.input_shape, input_dtype=np.float32)
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
class PretrainedNet:
    """EfficientNet-Lite0 with the published weights; ``labels`` replace ImageNet's."""

    labels: Path | None

    def read(self) -> FoundModel:
        """Return the net; raise MissingExtraError if its weights are not installed."""
        model, weights = lite0.model(), lite0.read_weights()
        names = lite0.imagenet_labels()
        if self.labels is not None:
            names = read_labels(self.labels, model.classes)
        return FoundModel(
            model,
            PublishedArchitecture(lite0.NAME),
            names,
            prepare(model, weights),
            key_of_vector(model, weights),
            lambda: weights,
            has_logits=True,
            fitting=lite0.FITTING,
        )


@dataclass(frozen=True)
class TrainedRun:
    """A run directory or a checkpoint file; ``labels`` replace the names of its classes.

    ``precision`` replaces that for which training chose the threshold of unknown images.
    """

    path: Path
    labels: Path | None
    progress: Progress
    trust_recipe: bool = False
    precision: float | None = None

    def read(self) -> FoundModel:
        """Return the model of the current checkpoint.

        Raise ModelSourceError if the file is not a checkpoint, SettingError for a precision that
        its images do not prove, and see ``load_trained``.
        """
        try:
            loaded, checkpoint = load_trained(self.path, self.trust_recipe)
        except NotACheckpointError as error:
            if self.path.is_dir():
                raise
            raise ModelSourceError(f"{self.path} is not a model; expected {MODELS}") from error
        record = RecipeRecord.from_json(checkpoint.recipe_record)
        has_classes = checkpoint.settings.get("has_classes", True)
        recorded = (record.class_names or None) if has_classes else ()
        names = _class_names(loaded, self.labels, recorded, self.progress)
        calibration = calibration_of(checkpoint)
        if self.precision is not None:
            if calibration is None:
                raise ModelSourceError(NO_PRECISION.format(self.path))
            calibration = calibration.promising(self.precision)
        weights = calibrated_weights(loaded, checkpoint)
        return replace(
            found_model(loaded, weights, names, record.fitting),
            unknown_below=calibration.threshold if calibration else 0.0,
            held_out=partial(read_held_out, self.path, loaded),
        )


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


@dataclass
class FollowedRun:
    """A model in training, read from the parameter server at ``address``."""

    address: str
    keys: PeerKeys | None
    labels: Path | None
    progress: Progress
    trust_recipe: bool = False
    _loaded: LoadedRecipe | None = None
    _reference: str = ""  # the server's reference of that recipe
    _class_names: tuple[str, ...] | None = None
    _kept: TemporaryDirectory[str] | None = None  # of a recipe that the server sent

    def version(self) -> int:
        """Return the number of updates that the server has applied; raise NoAnswerError."""
        with Observer(self.address, self.keys, ANSWER_WITHIN_S) as observer:
            return int(observer.run_value("version"))

    def read(self) -> FoundModel:
        """Return the model with the server's current weights.

        Raise NoAnswerError; UntrustedRecipeError if the recipe is code that the user did not
        trust; RecipeError for an invalid recipe, or a size other than this host's recipe has.
        """
        with Observer(self.address, self.keys, ANSWER_WITHIN_S) as observer:
            reference = str(observer.run_value("recipe"))
            if self._loaded is None or self._reference != reference:
                self._class_names = None  # unless the server sends them
                self._loaded, self._reference = self._load(reference, observer), reference
            snapshot = observer.snapshot()
        size = self._loaded.recipe.layout.size
        if len(snapshot.weights) != size:
            raise RecipeError(
                f"the server at {self.address} trains {len(snapshot.weights):,} weights, but this "
                f"host's recipe {reference} has {size:,}; expected the same recipe on both hosts"
            )
        names = _class_names(self._loaded, self.labels, self._class_names, self.progress)
        fitting = self._loaded.recipe.fitting
        return found_model(self._loaded, snapshot.weights, names, fitting, snapshot.version)

    def _load(self, reference: str, observer: Observer) -> LoadedRecipe:
        """Load a built-in recipe, or one sent by the server, which cannot choose a file to run."""
        if reference in recipe_names():
            return built_in_recipe(reference)
        offered = OfferedRecipe.from_offer(observer.recipe())
        if offered.is_code and not (self.trust_recipe or is_trusted(offered.file_digests)):
            raise UntrustedRecipeError(
                f"the server at {self.address} trains the recipe of a file, {reference!r}, "
                f"which is Python code; pass --trust-recipe to run the copy that the server sends"
            )
        self._kept = TemporaryDirectory(prefix="dist-net-recipe-")
        directory = RunDirectory(Path(self._kept.name) / "run")
        directory.make()
        self._class_names = offered.class_names
        offered.keep(directory, reference)  # the data is beside the original, if on this host
        return load_run_recipe(directory, trust_recipe=True)


ModelSource = DarknetFiles | PretrainedNet | TrainedRun | OnnxFile | FollowedRun
"""Each source's ``read`` returns the current model, or raises a DistNetError."""


def files_of(source: ModelSource) -> list[Path]:
    """Return the files that a source reads and others may have written. Raise a DistNetError."""
    match source:
        case OnnxFile(path):
            return onnx_files(path)
        case DarknetFiles():
            return [source.weights()]
        case TrainedRun(path) if path.is_dir():
            return [*path.iterdir()]
        case TrainedRun(path):
            return [path, RunDirectory(path.parent).held_out]
        case _:
            return []


def _class_names(
    loaded: LoadedRecipe,
    labels: Path | None,
    recorded: tuple[str, ...] | None,
    progress: Progress,
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
    loaded: LoadedRecipe,
    weights: Vector,
    names: tuple[str, ...],
    fitting: str = "",
    version: int | None = None,
) -> FoundModel:
    """Return the model of a recipe with these weights and names of its classes."""
    model = loaded.recipe.model
    architecture: Architecture = RecipeArchitecture.from_recipe(loaded)
    if loaded.reference == IMAGES:
        architecture = FolderArchitecture(image_recipe_of(loaded).as_net().to_json())
    elif loaded.reference == SAVED:
        architecture = LayersArchitecture(loaded.files[MODEL_JSON].decode())
    return FoundModel(
        model,
        architecture,
        names,
        prepare(model, weights),
        key_of_vector(model, weights),
        lambda: weights,
        has_logits=bool(names) and of_label(model.loss) is cross_entropy_of_logits,
        recipe=loaded.name,
        fitting=fitting or loaded.recipe.fitting,
        version=version,
    )


def model_source(
    model: str,
    weights: Path | None,
    labels: Path | None,
    progress: Progress,
    keys: PeerKeys | None = None,
    trust_recipe: bool = False,
    pixels: PixelOptions = NO_PIXEL_OPTIONS,
) -> ModelSource:
    """Return the source that ``model`` names; see MODELS. A name takes precedence over a path.

    ``model`` may also be the address of a parameter server, to connect to with ``keys``, or a join
    token. A published classifier's weights are downloaded if necessary, reported to ``progress``,
    unless ``weights`` is their file. The lines of the file ``labels`` replace the class names.
    ``trust_recipe``: see ``load_trained``. ``pixels`` applies to an .onnx file.

    Raise ModelSourceError if there is no such model, or if ``weights`` or ``labels`` are missing
    or not applicable, ModelFileError for a damaged .cfg file, and for a
    token the errors of ``join_by_token``.
    """
    if model in PUBLISHED:
        published = PUBLISHED[model]
        return DarknetFiles(
            published.configuration,
            lambda: weights or fetch_weights(published, progress),
            labels or imagenet_labels(),
        )
    if model == lite0.NAME:
        if weights is not None:
            raise ModelSourceError(f"{model} has its own weights; expected no --weights")
        return PretrainedNet(labels)
    path = Path(model)
    if path.suffix == ".cfg":
        return _configured(path, weights, labels)
    if not is_live(model) and not path.exists():
        known = did_you_mean(model, [lite0.NAME, *PUBLISHED])
        hint = known or suggest_runs(path) or f"expected {MODELS}"
        raise ModelSourceError(f"no model {model!r}; {hint}")
    if path.suffix == ".onnx" and weights is None:
        return OnnxFile(path, labels, pixels)
    if pixels != NO_PIXEL_OPTIONS:
        raise ModelSourceError(f"{model} has its own preprocessing; expected it for an .onnx file")
    if weights is not None:
        raise ModelSourceError(
            f"{model} is a run or an .onnx file, which has its own weights; expected no --weights"
        )
    if not is_live(model):
        return TrainedRun(path, labels, progress, trust_recipe)
    if not model.startswith(LIVE):
        token = JoinToken.parse(model)
        token.require_kind(TRAINING)
        model, keys = join_by_token(token, CLIENT)
    return FollowedRun(model, keys, labels, progress, trust_recipe)


def is_live(model: str) -> bool:
    """Return whether ``model`` names a parameter server, by its address or a join token."""
    return model.startswith(LIVE) or (is_token(model) and not Path(model).exists())


def _configured(path: Path, weights: Path | None, labels: Path | None) -> ModelSource:
    read_configuration(path)
    if weights is None or labels is None:
        raise ModelSourceError(
            f"{path} defines an architecture without weights; also pass --weights FILE and "
            f"--labels FILE"
        )
    return DarknetFiles(lambda: read_configuration(path), lambda: weights, labels)


class NamedSource(NamedTuple):
    """The parts of ``NAME=SOURCE[,weights=FILE][,labels=FILE]``, PixelOptions and a precision."""

    name: str
    source: str
    weights: Path | None
    labels: Path | None
    pixels: PixelOptions = NO_PIXEL_OPTIONS
    precision: float | None = None

    def open(
        self, progress: Progress, keys: PeerKeys | None = None, trust_recipe: bool = False
    ) -> ModelSource:
        """Return the source; see ``model_source``. Only a run on a folder has a precision."""
        files = self.weights, self.labels
        source = model_source(self.source, *files, progress, keys, trust_recipe, self.pixels)
        if self.precision is None:
            return source
        if not isinstance(source, TrainedRun):
            raise ModelSourceError(NO_PRECISION.format(self.source))
        return replace(source, precision=self.precision)


def parse_named_source(text: str) -> NamedSource:
    """Parse a command-line argument that names one of several models.

    Without ``NAME=`` the model is named after its source, with "-" for invalid characters. Raise
    ModelSourceError for an invalid name, and for ``stats``, which a URL reserves for statistics.
    """
    source, *options = re.split(rf",({'|'.join(OPTION_NAMES)})=", text)
    name, _, rest = source.partition("=")
    if rest and re.fullmatch(r"[\w.-]+", name) and not Path(source).exists():
        source = rest
    else:
        name = ""
    given = dict(zip(options[::2], options[1::2], strict=True))
    files = {name: Path(given.pop(name)) for name in FILE_NAMES if name in given}
    name = name or ("live" if is_live(source) else _name_after(source))
    if name == "stats" or not MODEL_NAME.fullmatch(name):
        raise ModelSourceError(
            f"a model cannot be served as {name!r}; expected NAME={source}, with a NAME other than "
            f"'stats' of 1 to 100 letters, digits, '.', '_' and '-', a letter or digit first"
        )
    text = given.pop("precision", None)
    try:
        precision = None if text is None else float(text)
    except ValueError:
        raise ModelSourceError(f"precision={text}: expected a share, such as 0.9") from None
    weights, labels = map(files.get, FILE_NAMES)
    return NamedSource(name, source, weights, labels, PixelOptions(**given), precision)


def parse_pool_sources(
    texts: Sequence[str], weights: Path | None, labels: Path | None
) -> list[NamedSource]:
    """Parse the models of one pool; ``weights`` and ``labels`` are those of its only model.

    Raise ModelSourceError for names that are not unique, and for files of several models.
    """
    sources = [parse_named_source(text) for text in texts]
    if len({each.name for each in sources}) < len(sources):
        names = ", ".join(each.name for each in sources)
        raise ModelSourceError(f"the models are named {names}; expected unique names")
    if len(sources) > 1 and (weights or labels):
        raise ModelSourceError(
            "--weights or --labels with several models; expected the files after the source of "
            "their model: NAME=SOURCE,weights=FILE,labels=FILE"
        )
    return [
        each._replace(weights=each.weights or weights, labels=each.labels or labels)
        for each in sources
    ]


def _name_after(source: str) -> str:
    path = Path(source)
    if path.is_file() and path.name == RunDirectory(path.parent).checkpoint.name:
        path = path.parent.resolve()  # every run's checkpoint has the same name
    name = path.stem if path.suffix == ".cfg" or path.is_file() else path.resolve().name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("-._")[:100] or "model"
