"""The classifiers published on Darknet's site, trained on the 1000 classes of ImageNet.

Each network is built in stages of blocks, as in its paper, which its function names. Sources: those
papers, and the table on the site's ImageNet page. The weights are downloaded from the site. Other
nets may be built of the same functions, each of which returns or yields sections of a .cfg file.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from dist_net.data import Progress, default_cache_dir
from dist_net.data.published_files import PublishedFile, download, fetch
from dist_net.errors import ModelSourceError
from dist_net.ground.spelling import suggestion
from dist_net.images.labels import read_labels
from dist_net.nets.darknet.configuration import Configuration, parse_configuration
from dist_net.nets.darknet.configuration import section as section
from dist_net.nets.darknet.darknet_network import DarknetNetwork

SITE = "https://pjreddie.com/media/files/"
CLASSES = 1000

EARLY_HEADER_BYTES = 16
LATE_HEADER_BYTES = 20
"""Since version 0.2 of the format, the number of images seen takes 8 bytes instead of 4."""

Sections = Iterator[str]


@dataclass(frozen=True)
class PublishedClassifier:
    """A trained network with downloadable weights. ``layers`` yields its configuration."""

    name: str
    title: str
    input_size: int
    layers: Callable[[], Sections]
    header_bytes: tuple[int, ...] = (LATE_HEADER_BYTES, EARLY_HEADER_BYTES)

    def configuration(self, input_size: int | None = None) -> Configuration:
        """Return the network for RGB images of side ``input_size`` (default: as published)."""
        side = self.input_size if input_size is None else input_size
        net = section("net", height=side, width=side, channels=3)
        return parse_configuration("\n".join([net, *self.layers()]), self.name)

    def weights_file(self) -> PublishedFile:
        """Return the file of the weights, identified by size: no checksum is published."""
        numbers_bytes = 4 * DarknetNetwork(self.configuration()).layout.size
        sizes_bytes = tuple(header + numbers_bytes for header in self.header_bytes)
        return PublishedFile(f"{self.name}.weights", sizes_bytes)


def published(name: str) -> PublishedClassifier:
    """Return the published classifier ``name``; raise ``ModelSourceError``."""
    if name not in PUBLISHED:
        raise ModelSourceError(
            f"there is no published classifier {name!r}; {suggestion(name, PUBLISHED)}"
        )
    return PUBLISHED[name]


@cache
def imagenet_labels() -> tuple[str, ...]:
    """Return the short names of ImageNet's 1000 classes, in the order of Darknet's classifiers.

    The order differs from ImageNet's own list: kit fox is first. Two names denote two classes each:
    crane (a bird and a machine) and maillot (a bathing suit and tights).
    """
    return read_labels(Path(__file__).with_name("imagenet_labels.txt"))


def convolution(
    filters: int, size: int, stride: int = 1, activation: str = "leaky", **more: int
) -> str:
    """A padded convolution with batch norm; a stride of 1 keeps the size of the map."""
    options = {"filters": filters, "size": size, "stride": stride, "pad": 1, **more}
    return section("convolutional", batch_normalize=1, **options, activation=activation)


def biased(filters: int, size: int, stride: int = 1, activation: str = "relu", pad: int = 1) -> str:
    options = {"filters": filters, "size": size, "stride": stride, "pad": pad}
    return section("convolutional", **options, activation=activation)


def pool(size: int = 2, **more: int) -> str:
    return section("maxpool", size=size, stride=2, **more)


def head(pool_first: bool, activation: str = "linear", classes: int = CLASSES) -> Sections:
    """A 1 x 1 convolution to the classes, before or after global average pooling."""
    parts = [section("avgpool"), biased(classes, 1, activation=activation)]
    yield from parts if pool_first else reversed(parts)
    yield section("softmax", groups=1)


def _connected_head() -> Sections:
    """Three connected layers, with most of the weights."""
    for _ in range(2):
        yield section("connected", output=4096, activation="relu")
        yield section("dropout", probability=0.5)
    yield section("connected", output=CLASSES, activation="linear")
    yield section("softmax", groups=1)


def _alternating(filters: int, convolutions: int) -> Sections:
    """3 x 3 convolutions, alternating with 1 x 1 convolutions of half as many filters."""
    for i in range(convolutions):
        yield convolution(filters // 2, 1) if i % 2 else convolution(filters, 3)


def alexnet() -> Sections:
    """Krizhevsky, Sutskever and Hinton 2012, without its normalization and groups."""
    yield biased(96, 11, 4, pad=0)
    yield pool(3, padding=0)
    yield biased(256, 5)
    yield pool(3, padding=0)
    yield from (biased(filters, 3) for filters in (384, 384, 256))
    yield pool(3, padding=0)
    yield from _connected_head()


def darknet_reference() -> Sections:
    """Redmon's small network: as accurate as AlexNet at a tenth of the size."""
    for filters in (16, 32, 64, 128, 256, 512):
        yield convolution(filters, 3)
        yield pool()
    yield convolution(1024, 3)
    yield from head(pool_first=True)


def vgg16() -> Sections:
    """Simonyan and Zisserman 2014, configuration D."""
    yield section("crop", crop_height=224, crop_width=224)
    for filters, convolutions in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        yield from (biased(filters, 3) for _ in range(convolutions))
        yield pool()
    yield from _connected_head()


def extraction() -> Sections:
    """Redmon et al. 2016, the classifier under the first YOLO, after GoogLeNet."""
    yield convolution(64, 7, 2)
    yield pool()
    yield convolution(192, 3)
    yield pool()
    for reduced, filters in ((128, 256), (256, 512)):
        yield convolution(reduced, 1)
        yield convolution(filters, 3)
    yield pool()
    for reduced, filters in (*((256, 512),) * 4, (512, 1024)):
        yield convolution(reduced, 1)
        yield convolution(filters, 3)
    yield pool()
    for _ in range(2):
        yield convolution(512, 1)
        yield convolution(1024, 3)
    yield from head(pool_first=False, activation="leaky")


def darknet19() -> Sections:
    """Redmon and Farhadi 2017, "YOLO9000", table 6."""
    for filters, convolutions in ((32, 1), (64, 1), (128, 3), (256, 3), (512, 5)):
        yield from _alternating(filters, convolutions)
        yield pool()
    yield from _alternating(1024, 5)
    yield from head(pool_first=False)


def darknet53() -> Sections:
    """Redmon and Farhadi 2018, "YOLOv3", table 1."""
    yield convolution(32, 3)
    for filters, blocks in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
        yield convolution(filters, 3, 2)
        for _ in range(blocks):
            yield convolution(filters // 2, 1)
            yield convolution(filters, 3)
            yield section("shortcut", **{"from": -3}, activation="linear")
    yield from head(pool_first=True)


def _residual(
    block: Callable[[int, int], Sections],
    blocks: tuple[int, ...],
    pool_first: bool = True,
    width: int = 64,
) -> Sections:
    """Stages of residual blocks; every stage doubles the width and halves the size."""
    yield convolution(64, 7, 2)
    yield pool()
    for stage, count in enumerate(blocks):
        for i in range(count):
            yield from block(width << stage, 2 if stage > 0 and i == 0 else 1)
    yield from head(pool_first)


def _basic(width: int, stride: int) -> Sections:
    """He et al. 2016, figure 5, left; the shortcut has no weights where the shape changes."""
    yield convolution(width, 3, stride)
    yield convolution(width, 3, activation="linear")
    yield section("shortcut", **{"from": -3}, activation="leaky")


def _bottleneck(width: int, stride: int, expansion: int = 4, **groups: int) -> Sections:
    """He et al. 2016, figure 5, right, and in groups Xie et al. 2017, figure 3(c)."""
    yield convolution(width, 1)
    yield convolution(width, 3, stride, "leaky", **groups)
    yield convolution(width * expansion, 1, activation="linear")
    yield section("shortcut", **{"from": -4}, activation="leaky")


_wide_grouped = partial(_bottleneck, expansion=2, groups=32)
_thin_grouped = partial(_bottleneck, expansion=8, groups=32)


def densenet201() -> Sections:
    """Huang et al. 2017, table 1, with the activation after the convolution."""
    yield convolution(64, 7, 2)
    yield pool()
    for filters, blocks in ((128, 6), (256, 12), (512, 48), (None, 32)):
        for _ in range(blocks):
            yield convolution(128, 1)
            yield convolution(32, 3)
            yield section("route", layers="-1,-3")
        if filters is not None:
            yield convolution(filters, 1)
            yield pool()
    yield from head(pool_first=False)


DEPTH_50 = (3, 4, 6, 3)
DEPTH_101 = (3, 4, 23, 3)
DEPTH_152 = (3, 8, 36, 3)


def _residual_net(name: str, title: str, *stages: Any) -> PublishedClassifier:
    return PublishedClassifier(name, title, 256, partial(_residual, *stages))


PUBLISHED = {
    each.name: each
    for each in (
        PublishedClassifier("alexnet", "AlexNet", 227, alexnet),
        PublishedClassifier("darknet", "Darknet Reference", 256, darknet_reference),
        PublishedClassifier("vgg-16", "VGG-16", 256, vgg16),
        PublishedClassifier("extraction", "Extraction", 224, extraction),
        PublishedClassifier("darknet19", "Darknet19", 256, darknet19),
        PublishedClassifier("darknet19_448", "Darknet19 448x448", 448, darknet19),
        _residual_net("resnet18", "ResNet 18", _basic, (2, 2, 2, 2)),
        _residual_net("resnet34", "ResNet 34", _basic, DEPTH_50),
        _residual_net("resnet50", "ResNet 50", _bottleneck, DEPTH_50),
        _residual_net("resnet101", "ResNet 101", _bottleneck, DEPTH_101, False),
        _residual_net("resnet152", "ResNet 152", _bottleneck, DEPTH_152, False),
        _residual_net("resnext50", "ResNeXt 50", _wide_grouped, DEPTH_50, True, 128),
        _residual_net("resnext101-32x4d", "ResNeXt 101 (32x4d)", _thin_grouped, DEPTH_101),
        _residual_net("resnext152-32x4d", "ResNeXt 152 (32x4d)", _thin_grouped, DEPTH_152),
        PublishedClassifier("densenet201", "DenseNet 201", 256, densenet201),
        PublishedClassifier("darknet53", "Darknet53", 256, darknet53, (LATE_HEADER_BYTES,)),
        PublishedClassifier(
            "darknet53_448", "Darknet53 448x448", 448, darknet53, (LATE_HEADER_BYTES,)
        ),
    )
}


def fetch_weights(
    classifier: PublishedClassifier,
    progress: Progress,
    cache_dir: Path | None = None,
    mirrors: Sequence[str] = (),
) -> Path:
    """Return the path of the classifier's weights, fetched into ``cache_dir/darknet`` if needed.

    ``cache_dir`` defaults to ``default_cache_dir()``. ``progress`` receives each ``FetchEvent``.
    ``mirrors`` are base addresses to download from before the authors' site. Raise
    ``FetchError`` if no source delivers the file or the directory is not usable.
    """
    directory = (cache_dir or default_cache_dir()) / "darknet"
    file = classifier.weights_file()
    sources = {f"download from {url}": partial(download, url, "") for url in (*mirrors, SITE)}
    advice = f"or name the file: dist-net predict {classifier.name} --weights FILE IMAGE"
    fetch(classifier.name, [file], directory, sources, progress, advice)
    return directory / file.name
