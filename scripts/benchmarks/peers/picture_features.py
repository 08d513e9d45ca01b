"""The features of a folder of pictures, decoding included, as ``dist-net train FOLDER`` has them.

The folder is the directory that the process is told.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.orders import Peer
from dist_net.data.picture_folder import PictureFolder
from dist_net.data.picture_samples import PicturePreprocessing
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.photos.base_features import FeatureExtractor, Views
from dist_net.photos.bases import base_called
from dist_net.photos.picture_preparation import prepare_pictures


def load(directory: Path, _batch: int, threads: int) -> Callable[[], NDArray[np.float32]]:
    """A function that decodes the pictures anew, and gives their features (N, F)."""
    found = base_called(lite0.NAME, lambda _: None)
    preprocessing = PicturePreprocessing(found.base.input_shape, found.base.fitting)

    def run() -> NDArray[np.float32]:
        folder = PictureFolder.read(str(directory))
        with TemporaryDirectory() as temporary:
            place = Path(temporary)
            pictures = prepare_pictures(
                folder, preprocessing, place, cache_dir=place, workers=threads
            )
            with pictures:
                extractor = FeatureExtractor(found, threads)
                file = place / "features.npy"
                features = extractor.compute(pictures, Views(), file, lambda *_: None)
                return np.array(features[0])

    return run


if __name__ == "__main__":
    Peer("dist-net", load).obey()
