"""Runs on a folder of images, and logistic regression on the same features.

The folder is the directory that the process is told; it has images to test on. Each order is
answered by the share of these that is classified rightly.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import numpy as np

import dist_net
from benchmarks.peers.orders import obey
from dist_net.data.image_split import TEST, TRAIN, VALIDATION
from dist_net.data.prepared_images import ImageCache
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos import image_run
from dist_net.photos.bases import FeatureExtractor, FoundBase, Views, base_called
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
        return float(self._trained("head").report["test_accuracy"])

    def tuned(self, seed: int, side: int, flip: bool) -> dict[str, Any]:
        """Return the reports of ``head`` and, with ``--fine-tune auto``, of ``tuned``.

        Images have ``side`` pixels each way.
        """

        def resized(*arguments: Any) -> FoundBase:
            found = base_called(*arguments)
            return found._replace(base=replace(found.base, input_shape=(side, side, 3)))

        self._seed = seed
        with patch.object(image_run, "base_called", resized):
            runs = {
                name: self._trained(f"{name} {seed}", workers=1, fine_tune=fine_tune, flip=flip)
                for name, fine_tune in (("head", 0), ("tuned", "auto"))
            }
        return {
            name: json.loads((run.path / "report.json").read_text()) | run.report
            for name, run in runs.items()
        }

    def _trained(self, name: str, workers: int = 2, **options: Any) -> dist_net.Run:
        return dist_net.train(
            self._folder,
            workers=workers,
            run_dir=self._place / name,
            quiet=True,
            base="efficientnet-lite0",
            seed=self._seed,
            **options,
        )

    def logistic_regression(self) -> float:
        """Return the share of scikit-learn's, on the features of the head, with its best C."""
        from sklearn.linear_model import LogisticRegression

        cache = ImageCache.read(RunDirectory(self._place / "head").images)
        images = cache.find()
        assert images is not None
        base = base_called("efficientnet-lite0", lambda _: None)
        extractor = FeatureExtractor(base, Views(), 1, cache)
        with images:
            samples = images.samples()
            digests = thumbnails_and_digests(samples)[1]
            features = extractor.compute(samples, digests, lambda *_: None)[:, 0]
            labels = np.array(images.folder.labels)[images.rows()]
            is_tested = np.isin(images.rows(), images.rows(TEST))
            trained = np.concatenate([images.rows(part) for part in (TRAIN, VALIDATION)])
            is_trained = np.isin(images.rows(), trained)
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
