"""The head that follows a label at once, until the heads of the folds are trained."""

from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_split import LabelledImage
from dist_net.data.samples import ArraySamples
from dist_net.errors import ImageError
from dist_net.photos.bases import FeatureExtractor
from dist_net.photos.head import HeadProblem
from dist_net.photos.image_run import TrainedImages

MAX_NEW = 8


class InterimHead:
    """Trains one head, with the penalty, the distance and the threshold of ``trained``.

    It begins from the last head. It keeps the row of each image file that training used, among the
    rows of features; None for the other files.
    """

    def __init__(self, trained: TrainedImages, extractor: FeatureExtractor) -> None:
        files, head = trained.images.folder.images, trained.head
        assert head is not None
        self._trained, self._extractor, self._penalty = trained, extractor, head.heads.penalty
        self._components = head.heads.problem.components
        self._weights = head.heads.weights[:, -1:]
        self._rows: dict[LabelledImage, int | None] = dict.fromkeys(map(_file, files))
        self._rows |= {_file(files[image]): row for row, image in enumerate(head.rows.tolist())}

    def train(self, folder: ImageFolder) -> TrainedImages | None:
        """Return a run with the head of a folder; None for other classes or many new images.

        A process that can be thrown away has decoded each new image before its label was set.
        """
        new = [each for each in folder.images if _file(each) not in self._rows]
        if folder.class_names != self._trained.recipe.class_names or len(new) > MAX_NEW:
            return None
        for each in new:
            self._rows[_file(each)] = self._row(folder.root / each.path)
        found = zip((self._rows[_file(each)] for each in folder.images), folder.labels, strict=True)
        rows, labels = np.array([each for each in found if each[0] is not None]).T
        components = self._components._replace(rows=self._components.rows[rows])
        problem = HeadProblem(components, labels, len(folder.class_names))
        with threadpool_limits(1, "blas"):
            self._weights, _ = problem.solve(self._penalty, self._weights)
        weights = self._trained.weights.copy()
        for name, value in components.head(self._weights[:, 0])._asdict().items():
            self._trained.recipe.model.layout.views(weights)[f"head/{name}"][...] = value
        return self._trained._replace(weights=weights)

    def _row(self, file: Path) -> int | None:
        """Append a row; return None for a damaged file, which the next training reports."""
        try:
            pixels = self._trained.images.preprocessing.input_of(file)
        except ImageError:
            return None
        features = self._extractor.features_of(ArraySamples(pixels[None]))
        self._components = self._components.with_features(features)
        self._weights = np.insert(self._weights, [-1] * len(features), 0, 2)
        return len(self._components.rows) - 1


def _file(image: LabelledImage) -> LabelledImage:
    return image._replace(class_name="", part="")
