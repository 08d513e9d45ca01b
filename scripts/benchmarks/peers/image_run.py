"""Runs on a folder of images, and logistic regression on the same features.

The folder is the directory that the process is told; it has images to test on. Each order is
answered by the share of these that is classified rightly.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import dist_net
from benchmarks.peers.orders import obey
from dist_net.data.image_split import TEST, TRAIN
from dist_net.nets.recipes.image_data import ImageData
from dist_net.nets.run_directory import RunDirectory


class ImageRuns:
    """Runs of two workers on one folder, in ``place``, where its cache lies too."""

    def __init__(self, folder: Path, place: Path) -> None:
        self._folder = folder
        self._place = place
        self._seed = 0

    def head(self, seed: int) -> float:
        """Of a head on the features of EfficientNet-Lite0."""
        self._seed = seed
        return self._trained("head", 0)

    def tuned(self, epochs: int) -> float:
        """Of the whole net, trained further after such a head, by the same seed."""
        return self._trained("tuned", epochs)

    def _trained(self, name: str, epochs: int) -> float:
        run = dist_net.train(
            self._folder,
            workers=2,
            run_dir=self._place / name,
            quiet=True,
            base="efficientnet-lite0",
            seed=self._seed,
            fine_tune=epochs,
        )
        return float(run.report["test_accuracy"])

    def logistic_regression(self) -> float:
        """Of scikit-learn's, on the standardized features that the head was trained on."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        run = RunDirectory(self._place / "head")
        data = ImageData.read(RunDirectory(run.head).images)
        images = data.cache.find()
        assert images is not None
        features = np.load(data.features, mmap_mode="r")[0]
        with images:
            regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
            regression.fit(features[images.rows(TRAIN)], images.labels(TRAIN))
            return float(regression.score(features[images.rows(TEST)], images.labels(TEST)))


def main() -> None:
    """Obeys, with a cache of images of its own."""
    with TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary
        runs = ImageRuns(Path(sys.argv[1]), Path(temporary))
        obey({name: getattr(runs, name) for name in ("head", "tuned", "logistic_regression")})


if __name__ == "__main__":
    main()
