"""Fetching the weights of a published classifier into the cache directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dist_net.darknet.network import DarknetNetwork
from dist_net.darknet.published import SITE, PublishedClassifier
from dist_net.data import Progress, default_cache_dir
from dist_net.data.cache import Cache, PublishedFile
from dist_net.data.download import Download
from dist_net.data.fetch import fetch

DIRECTORY = "darknet"


def fetch_weights(
    classifier: PublishedClassifier,
    progress: Progress,
    cache_dir: Path | None = None,
    mirrors: Sequence[str] = (),
) -> Path:
    """The path of the classifier's weights, fetched into ``cache_dir``/darknet if need be.

    ``progress`` is called with each event of the fetching. ``cache_dir`` None stands for
    ``default_cache_dir()``; ``mirrors`` are base addresses to download from before the published
    one.
    Raises NotFetchedError when none can deliver, and CacheError when the directory cannot be used.
    """
    cache = Cache((cache_dir or default_cache_dir()) / DIRECTORY)
    file = published_file(classifier)
    fetch(
        classifier.name,
        [file],
        [Download(base_url, suffix="") for base_url in (*mirrors, SITE)],
        cache,
        progress,
        f"or say where the file is: dist-net predict {classifier.name} --weights FILE IMAGE",
    )
    return cache.path(file)


def published_file(classifier: PublishedClassifier) -> PublishedFile:
    """The file of weights as it is known: by its size, since nobody publishes a checksum.

    That the numbers in it are a network's is checked when they are read.
    """
    network = DarknetNetwork(classifier.configuration())
    size_bytes, *others = classifier.sizes_bytes(network.layout.size)
    return PublishedFile(classifier.file_name, size_bytes, other_sizes_bytes=tuple(others))
