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
from dist_net.data.image_split import TEST, TRAIN, VALIDATION
from dist_net.data.prepared_images import ImageCache
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.bases import FeatureExtractor, Views, base_called
from dist_net.photos.similar_images import thumbnails_and_digests

STRENGTHS = 0.001, 0.01, 0.1, 1.0, 10.0
"""Values of C; the best on the tested images is compared, in favour of scikit-learn."""


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
        """Return the share of scikit-learn's, on the features of the head, with its best C."""
        from sklearn.linear_model import LogisticRegression

        cache = ImageCache.read(RunDirectory(self._place / "head").images)
        images = cache.find()
        assert images is not None
        base = base_called("efficientnet-lite0", lambda _: None)
        extractor = FeatureExtractor(base, Views(), 1, cache)
        with images:
            samples = images.usable_samples()
            digests = thumbnails_and_digests(samples)[1]
            features = extractor.compute(samples, digests, lambda *_: None)[:, 0]
            labels = np.array(images.folder.labels)[images.usable_rows()]
            is_tested = np.isin(images.usable_rows(), images.rows(TEST))
            trained = np.concatenate([images.rows(part) for part in (TRAIN, VALIDATION)])
            is_trained = np.isin(images.usable_rows(), trained)
            return max(
                float(
                    LogisticRegression(C=strength, max_iter=2000)
                    .fit(features[is_trained], labels[is_trained])
                    .score(features[is_tested], labels[is_tested])
                )
                for strength in STRENGTHS
            )


def main() -> None:
    """Obeys, with a cache of images of its own."""
    with TemporaryDirectory() as temporary:
        os.environ["XDG_CACHE_HOME"] = temporary
        runs = ImageRuns(Path(sys.argv[1]), Path(temporary))
        obey({name: getattr(runs, name) for name in ("head", "tuned", "logistic_regression")})


if __name__ == "__main__":
    main()
