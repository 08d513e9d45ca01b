"""The features of a folder of images, decoding included, as ``dist-net train FOLDER`` has them.

The folder is the directory that the process is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.orders import Peer
from dist_net.data.image_folder import ImageFolder
from dist_net.data.prepared_images import ImageCache, ImagePreprocessing
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.photos.bases import FeatureExtractor, Views, base_called
from dist_net.photos.image_preparation import prepare_images
from dist_net.photos.similar_images import thumbnails_and_digests


def load(directory: Path, _batch: int, threads: int) -> Callable[[], NDArray[np.float32]]:
    """A function that decodes the images anew, and gives their features (N, F)."""
    found = base_called(lite0.NAME, lambda _: None)
    preprocessing = ImagePreprocessing(found.base.input_shape, found.base.fitting)

    def run() -> NDArray[np.float32]:
        folder = ImageFolder.read(str(directory))
        with TemporaryDirectory() as temporary:
            place = Path(temporary)
            cache = ImageCache(place, folder, preprocessing)
            images = prepare_images(cache, place, workers=threads)
            with images:
                extractor = FeatureExtractor(found, Views(), threads, cache)
                samples = images.samples()
                digests = thumbnails_and_digests(samples)[1]
                return extractor.compute(samples, digests, lambda *_: None)[:, 0]

    return run


if __name__ == "__main__":
    Peer("dist-net", load).obey()
