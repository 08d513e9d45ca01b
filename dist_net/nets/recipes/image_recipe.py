"""Recipes for training on a folder of images, stored as JSON: loading a recipe runs no code."""

import json
import re
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal, Self

import numpy as np

from dist_net import nn
from dist_net.autodiff import Expression, max, maximum, sum
from dist_net.data import Dataset
from dist_net.data.prepared_images import ImageCache
from dist_net.errors import DistNetError, RecipeError
from dist_net.ground.checkpoint import MALFORMED
from dist_net.ground.json_records import record_from_json
from dist_net.ground.vector import Vector
from dist_net.images.augmentation import Augmentation
from dist_net.images.fitting import fitting_named, is_image_shape
from dist_net.nets import efficientnet_lite0
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.onnx_base import OnnxFeatures
from dist_net.nets.recipes.recipe import LoadedRecipe, Recipe, built_in_recipe, recipe_names
from dist_net.optim import AdamW, Cosine, WarmUp

IMAGES = "pictures"
"""The reference of every image recipe; its file exists only in the run directory."""

RECIPE_JSON = "recipe.json"
FORMAT = 1
SMALL_SIDE = 64

LARGEST_SIDE = 4096
MAX_DIRECTIONS = 1024
WEIGHT_DECAY = 0.01
RISING_SHARE = 0.25

BaseKind = Literal["small", "efficientnet-lite0", "darknet", "recipe", "pictures", "onnx"]


@dataclass(frozen=True)
class Base:
    """The network that computes the features to classify.

    ``text`` is the configuration of a Darknet network, the name of a built-in recipe, the JSON of
    another image recipe, or the bytes and the features of an ONNX file. Images are ``input_shape``
    uint8, fitted by ``fitting``.
    """

    kind: BaseKind
    name: str
    input_shape: tuple[int, ...]
    fitting: str
    text: str = ""

    @cached_property
    def network(self) -> nn.Layer:
        """Return the whole network, for uint8 images; propagates errors of building it."""
        match self.kind:
            case "small":
                return _small_network()
            case "efficientnet-lite0":
                return efficientnet_lite0.EfficientNetLite0()
            case "darknet":
                configuration = parse_configuration(self.text, self.name)
                return nn.Sequential(nn.Rescale(), DarknetNetwork(configuration))
            case "recipe":
                return built_in_recipe(self.text).recipe.model.network
            case "pictures":
                return ImageRecipe.from_json(self.text).network
            case "onnx":
                return OnnxFeatures(*map(int, self.text.split()))

    @cached_property
    def model(self) -> nn.Model:
        return nn.Model(self.network, self.input_shape)

    @cached_property
    def feature_layers(self) -> nn.Layer:
        """Return the network up to its ``(N, features)``; trained batch norm is frozen."""
        if self.kind in ("small", "onnx"):
            return self.network
        return nn.Features(nn.FrozenBatchNorm(self.network))

    @cached_property
    def features(self) -> nn.Model:
        return nn.Model(self.feature_layers, self.input_shape)


def small_base(side: int = SMALL_SIDE) -> Base:
    """Return a small network to train from scratch, for ``(side, side, 3)`` images."""
    return Base("small", "none", (side, side, 3), "crop")


def _small_network() -> nn.Layer:
    """Return four 3x3 convolutions, with batch norm and pooling, and the mean over all pixels."""
    layers = [
        layer
        for filters in (16, 32, 64, 128)
        for layer in (
            nn.Conv2D(filters, 3, use_bias=False),
            nn.BatchNorm(activation=nn.relu),
            nn.MaxPool(2),
        )
    ]
    return nn.Sequential(nn.Rescale(1 / 128, -127 / 128), *layers, nn.GlobalAveragePool())


@dataclass(frozen=True)
class Head:
    """Shift and scale features, ``(N, F)``, and compute their logits, ``(N, classes)``.

    With ``directions``, the logits of features far from every class are divided by the square of
    their distance; see ``dist_net.photos.unknown_images``.
    """

    classes: int
    directions: int = 0

    def __call__(self, x: Expression, scope: nn.Scope) -> Expression:
        width = x.shape[1:]
        # Set before training: buffers that are not observed keep their values.
        mean = scope.buffer("mean", width, nn.zeros, momentum=0.0)
        deviation = scope.buffer("deviation", width, nn.ones, momentum=0.0)
        dense = nn.Dense(self.classes, kernel_initializer=nn.zeros)
        logits = dense((x - mean) / deviation, scope)
        return logits / self._temper(x, scope.child("distance")) if self.directions else logits

    def _temper(self, x: Expression, scope: nn.Scope) -> Expression:
        def known(name: str, *shape: int) -> Expression:
            return scope.buffer(name, shape, nn.zeros, momentum=0.0)

        (width,) = x.shape[1:]
        within = x @ known("directions", width, self.directions)
        scores = x @ known("kernel", width, self.classes) + known("bias", self.classes)
        squares = known("scale", 1) * sum(x * x, 1, keepdims=True)
        squares -= sum(within * within, 1, keepdims=True)
        distance = maximum(squares - max(scores, 1, keepdims=True), 1)
        return distance * distance


@dataclass(frozen=True)
class ImageNet:
    """A base and a head: computes logits, ``(N, classes)``, from uint8 images."""

    base: Base
    classes: int
    directions: int = 0

    def __call__(self, x: Expression, scope: nn.Scope) -> Expression:
        features = self.base.feature_layers(x, scope.child("base"))
        return Head(self.classes, self.directions)(features, scope.child("head"))


@dataclass(frozen=True)
class ImageRecipe:
    """A network for the classes of a folder of images, and the settings of its training.

    ``directions`` is the number of directions in the distance of the head; 0 disables the
    distance. ``augmentation`` varies the training images. ``data`` is the path of the
    ``ImageCache`` file that locates the prepared images on this host. ``tuned_on`` names the images
    that the base was trained on, by the digests of their pixels.
    """

    name: str
    base: Base
    class_names: tuple[str, ...]
    directions: int = 0
    epochs: int = 30
    batch_size: int = 32
    learning_rate: float = 0.001
    augmentation: Augmentation | None = None
    data: str = ""
    tuned_on: tuple[str, ...] = ()

    @cached_property
    def network(self) -> nn.Layer:
        return ImageNet(self.base, len(self.class_names), self.directions)

    def load_images(self) -> Dataset:
        """Return the images of this host's cache; raise ``RecipeError`` if it lacks them."""
        cache = ImageCache.read(Path(self.data)) if self.data else None
        if cache is None or (images := cache.find()) is None:
            raise RecipeError(
                f"the images that {self.name} was trained on are not prepared on this host; "
                f"expected the host that trained it, or train it anew: dist-net train FOLDER"
            )
        return images.dataset(cache.test_part, self.augmentation)

    def loaded(self, initial: Vector | None = None) -> LoadedRecipe:
        """Return the recipe in the form that runs use; ``initial`` are its initial weights."""
        # At its full height, the rate undoes a head in the first steps.
        one_cycle = WarmUp(RISING_SHARE * self.epochs, Cosine())
        recipe = Recipe(
            network=self.network,
            dataset=self.load_images,
            input_shape=self.base.input_shape,
            input_dtype=np.uint8,
            optimizer=AdamW(weight_decay=WEIGHT_DECAY),
            learning_rate=self.learning_rate,
            schedule=Cosine() if self.base.kind == "small" else one_cycle,
            batch_size=self.batch_size,
            epochs=self.epochs,
            fitting=self.base.fitting,
            weights=initial,
        )
        files, portable = (
            {RECIPE_JSON: each.to_json().encode()}
            for each in (self, replace(self, name="", data=""))
        )
        return LoadedRecipe(IMAGES, self.name, files, recipe, portable=portable)

    @cached_property
    def model(self) -> nn.Model:
        return nn.Model(self.network, self.base.input_shape)

    def as_net(self) -> Self:
        """Return a copy without augmentation and data, for a network that is not trained."""
        return replace(self, augmentation=None, data="", tuned_on=())

    def tempered(self, weights: Vector, temperature: float) -> Vector:
        """Return a copy of ``weights`` that divides the logits by ``temperature``."""
        tempered = weights.copy()
        views = self.model.layout.views(tempered)
        for name in ("head/kernel", "head/bias"):
            views[name] /= np.float32(temperature)
        return tempered

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)})

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Parse the output of ``to_json``; raise ``RecipeError`` for any other text."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            if values.pop("stage", "whole") != "whole":  # earlier releases trained heads apart
                raise ValueError("a head without its base")
            recipe = record_from_json(cls, values)
            recipe.check()
        except (*MALFORMED, DistNetError) as error:
            raise RecipeError(
                f"a recipe of images is {str(text)[:80]} ({error}); expected the JSON object "
                f"that 'dist-net train FOLDER' writes, of format {FORMAT}"
            ) from error
        return recipe

    def check(self) -> None:
        """Raise ``ValueError`` for values out of range, as in a damaged file."""
        if len(self.class_names) < 2:
            raise ValueError("fewer than two classes")
        if not 0 <= self.directions <= MAX_DIRECTIONS:
            raise ValueError(f"{self.directions!r} directions")
        if self.base.kind == "recipe" and self.base.text not in recipe_names():
            raise ValueError(f"a base that is no built-in recipe: {self.base.text!r:.80}")
        if self.base.kind == "onnx" and not re.fullmatch(
            r"[1-9]\d{0,9} [1-9]\d{0,6}", self.base.text
        ):
            raise ValueError(f"an ONNX file of {self.base.text!r:.80} bytes and features")
        shape = self.base.input_shape
        if not (is_image_shape(shape) and all(1 <= each <= LARGEST_SIDE for each in shape)):
            raise ValueError(f"images of shape {shape}")
        fitting_named(self.base.fitting)
