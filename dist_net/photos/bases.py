"""The base of a run, a trained net that provides the features: find it, and compute features."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from dist_net.data import Progress
from dist_net.data.prepared_images import ImageCache
from dist_net.data.samples import Samples
from dist_net.errors import FetchError, MissingExtraError, ModelSourceError
from dist_net.export.onnxruntime_engine import NUMPY, computed_by
from dist_net.ground.files import replacing
from dist_net.ground.spelling import did_you_mean
from dist_net.ground.vector import Vector
from dist_net.images.augmentation import Augmentation
from dist_net.images.fitting import is_image_shape
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import PublishedArchitecture
from dist_net.nets.darknet.configuration import (
    Configuration,
    configuration_text,
    read_configuration,
)
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import PUBLISHED, fetch_weights
from dist_net.nets.darknet.weights import read_weights
from dist_net.nets.foreign_onnx import OnnxSession, open_session
from dist_net.nets.onnx_base import read_backbone
from dist_net.nets.recipe_origins import image_recipe_of
from dist_net.nets.recipes.image_recipe import Base, ImageRecipe, small_base
from dist_net.nets.run_contents import read_run, recipe_code_digests
from dist_net.nets.run_directory import suggest_runs
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nets.sources.named_source import parse_named_source
from dist_net.nn.inference import Inference, key_of_vector, prepare
from dist_net.photos.head import HeadWeights
from dist_net.photos.image_preparation import ShowCount
from dist_net.photos.unknown_images import Distance

BATCH_SIZE = 8

DEFAULT_BASE = lite0.NAME
NONE = "none"
BASES = (
    f"{lite0.NAME}, a published classifier ({', '.join(PUBLISHED)}), NET.cfg,weights=FILE, "
    f"NET.onnx, the directory of a run, or {NONE} for a small net that is trained from the "
    f"beginning"
)


class FoundBase(NamedTuple):
    """A base, and its weights in the layout of ``base.model``; None for an untrained base.

    ``tuned_on``: see ``ImageRecipe``.
    """

    base: Base
    weights: Vector | None
    tuned_on: tuple[str, ...] = ()


def base_called(name: str, progress: Progress) -> FoundBase:
    """Return the base with this name; ``BASES`` lists the names.

    Published weights are downloaded if they are not cached; ``progress`` shows the download.
    Raise MissingExtraError if EfficientNet-Lite0 is not installed, ModelSourceError for an unknown
    name and for a net that cannot serve as a base, and every error of reading a net.
    """
    if name == NONE:
        return FoundBase(small_base(), None)
    if name == lite0.NAME:
        base = Base("efficientnet-lite0", name, lite0.INPUT_SHAPE, lite0.FITTING)
        try:
            return FoundBase(base, lite0.read_weights())
        except MissingExtraError as error:
            raise MissingExtraError(
                f"{error}; or pass --base {NONE}, which trains a small net from scratch"
            ) from error
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return _darknet(published.configuration(), name, fetch_weights(published, progress))
    source = parse_named_source(name)
    path = Path(source.source)
    if path.suffix == ".cfg":
        if source.weights is None:
            raise ModelSourceError(f"the base {name} has no weights; expected {name},weights=FILE")
        return _darknet(read_configuration(path), source.name, source.weights)
    if not path.exists():
        known = [lite0.NAME, *PUBLISHED, NONE]
        hint = did_you_mean(name, known) or suggest_runs(path) or f"expected {BASES}"
        raise ModelSourceError(f"no base {name!r}; {hint}")
    if path.suffix == ".onnx":
        layers, shape, fitting, weights = read_backbone(path, source.pixels)
        text = f"{layers.size} {layers.features}"
        return FoundBase(Base("onnx", source.name, shape, fitting, text), weights)
    return _run(path, source.name)


def _darknet(configuration: Configuration, name: str, weights: Path) -> FoundBase:
    network = DarknetNetwork(configuration)
    text = configuration_text(configuration)
    base = Base("darknet", name, network.input_shape, "crop", text)
    _require_images(base)
    return FoundBase(base, read_weights(weights, network))


def _run(path: Path, name: str) -> FoundBase:
    if recipe_code_digests(path):
        raise ModelSourceError(
            f"{path} was trained by a recipe of its own, which is Python code; expected a base "
            f"that is data: {BASES}"
        )
    loaded, checkpoint = read_run(path)
    recipe = loaded.recipe
    if (of_images := image_recipe_of(loaded)) is not None:
        text = of_images.as_net().to_json()
        base = Base("pictures", name, recipe.input_shape, recipe.fitting, text)
    else:
        base = Base("recipe", name, recipe.input_shape, recipe.fitting, loaded.reference)
    if recipe.model.input_dtype != np.uint8:
        raise ModelSourceError(f"{path} takes no images; expected a net that does: {BASES}")
    _require_images(base)
    return FoundBase(base, checkpoint.weights)


def base_of_model(path: Path) -> FoundBase:
    """Return the base of a run on a folder as its model has it, without a classifier of its own.

    Raise the errors of reading the model, and ModelSourceError if its base was trained on unknown
    images.
    """
    loaded, checkpoint = read_run(path)
    recipe = image_recipe_of(loaded)
    assert recipe is not None
    if not recipe.tuned_on and (recipe.epochs > 1 or not recipe.directions):
        raise ModelSourceError(
            f"{path} lacks the list of the images that its whole net was trained on, as an earlier "
            f"release wrote it; expected it, to judge a head by others: write it by 'dist-net "
            f"train --resume --run-dir {path}'"
        )
    weights = np.zeros(recipe.base.model.layout.size, np.float32)
    of_base = recipe.base.model.layout.views(weights)
    for name, view in recipe.model.layout.views(checkpoint.evaluated_weights).items():
        room, _, inner = name.partition("/")
        if room == "base":
            of_base[inner][...] = view
    return FoundBase(recipe.base, weights, recipe.tuned_on)


def _require_images(base: Base) -> None:
    if not base.features.layout.size:  # raises if the base has no features
        raise ModelSourceError(
            f"the base {base.name} has a single layer, its classifier; expected trained layers "
            f"before it, which compute features: {BASES}"
        )
    if not is_image_shape(base.input_shape):
        raise ModelSourceError(
            f"the base {base.name} takes inputs of {base.input_shape}; expected images, "
            f"(H, W), (H, W, 1) or (H, W, 3)"
        )


def joined_weights(
    recipe: ImageRecipe, base: FoundBase, head: HeadWeights, distance: Distance | None = None
) -> Vector:
    """Return the weights of base and head as one net; without ``distance``, it is always 0."""
    layout = recipe.model.layout
    weights = np.zeros(layout.size, np.float32)
    assert base.weights is not None
    of_base = base.base.model.layout.views(base.weights)
    of_head: dict[str, Any] = {**head._asdict(), "mean": 0.0, "deviation": 1.0}
    if distance is not None:
        of_head |= {f"distance/{name}": value for name, value in distance._asdict().items()}
    for name, view in layout.views(weights).items():
        room, _, inner = name.partition("/")
        if room == "base":
            view[...] = of_base[inner]
        elif inner in of_head:
            view[...] = of_head[inner]
    return weights


@dataclass(frozen=True)
class Views:
    """The variants of each image to compute features of; the first is the unchanged image."""

    count: int = 1
    seed: int = 0
    augmentation: Augmentation = Augmentation()  # noqa: RUF009 - immutable


class FeatureExtractor:
    """Compute a base's features of images, with ``threads`` threads of this process.

    A file in the cache keeps the features of a folder's images by the SHA-256 of their pixels: if
    files are moved, renamed or added, only new images are computed.
    """

    def __init__(
        self, found: FoundBase, views: Views, threads: int, cache: ImageCache, engine: str = NUMPY
    ) -> None:
        model, layout = found.base.features, found.base.model.layout
        assert found.weights is not None
        by_name = layout.views(found.weights)
        self._weights = np.concatenate([by_name[name].ravel() for name, _ in model.layout.shapes])
        self._model = model
        # ONNX Runtime computes an ONNX file whatever the engine.
        self._engine = NUMPY if found.base.kind == "onnx" else engine
        self._views = views
        self._threads = threads
        others = () if self._engine == NUMPY else (self._engine,)
        drawn = views if views.count > 1 else Views()
        self._path = cache.features(key_of_vector(model, self._weights), drawn, *others)
        self._row = np.dtype(
            [("digest", "V32"), ("features", np.float32, (views.count, model.classes))]
        )

    def compute(
        self, samples: Samples, digests: Sequence[bytes], show: ShowCount
    ) -> NDArray[np.float32]:
        """Return the features, (N, views, F), of images with these SHA-256 digests of pixels.

        Compute and write the features that the file lacks. Raise FetchError.
        """
        kept = self._kept()
        row_of = {digest: row for row, digest in enumerate(kept["digest"].tolist())}
        is_new = np.array([digest not in row_of for digest in digests])
        table = np.empty(len(digests), self._row)
        table["digest"] = digests
        table["features"][~is_new] = kept["features"][
            [row_of[digest] for digest in digests if digest in row_of]
        ]
        if is_new.any():
            self._fill(samples, np.flatnonzero(is_new), table, show)
            try:
                with replacing(self._path) as partial:
                    open_memmap(partial, "w+", self._row, table.shape)[...] = table
            except OSError as error:
                raise FetchError(
                    f"{self._path}: {error.strerror}; expected room for {table.nbytes:,} bytes"
                ) from error
        return table["features"]

    def features_of(self, samples: Samples) -> NDArray[np.float32]:
        """Return the features of images as they are, (N, F); the file is not used."""
        table = np.zeros(len(samples), self._row)
        self._fill(samples, np.arange(len(samples)), table, lambda *_: None)
        return table["features"][:, 0]

    @cached_property
    def _session(self) -> Inference | OnnxSession:
        prepared, net = prepare(self._model, self._weights), PublishedArchitecture("")
        if self._engine == NUMPY:
            return open_session(self._model, prepared, self._threads, BATCH_SIZE)
        found = FoundModel(self._model, net, (), prepared, "", lambda: self._weights)
        found = computed_by(found, self._engine)
        return open_session(found.model, found.prepared, self._threads, BATCH_SIZE)

    def _kept(self) -> NDArray[np.void]:
        """Return the file's rows; none if it is missing, damaged or holds other rows."""
        # Unlike np.load, ``open_memmap`` reads no zip file, and maps no more than the file.
        with suppress(OSError, ValueError, OverflowError):
            kept = open_memmap(self._path, mode="r")
            if kept.dtype == self._row and kept.ndim == 1:
                return kept
        return np.empty(0, self._row)

    def _fill(
        self, samples: Samples, new: NDArray[np.int64], table: NDArray[np.void], show: ShowCount
    ) -> None:
        batch = np.empty((BATCH_SIZE, *samples.shape), np.uint8)
        for start in range(0, len(new), BATCH_SIZE):
            rows = new[start : start + BATCH_SIZE]
            images = batch[: len(rows)]
            samples.read(rows, images)
            # A variant depends on the pixels, so that it can be found again as well.
            seeds = [int.from_bytes(each[:8]) for each in table["digest"][rows].tolist()]
            for view in range(self._views.count):
                variants = images.copy()
                if view:
                    with_channels = variants.reshape(*images.shape[:3], -1, copy=False)
                    self._views.augmentation.apply(with_channels, self._views.seed, view, seeds)
                table["features"][rows, view] = self._session(variants)
            show(start + len(rows), len(new))
