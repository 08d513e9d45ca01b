"""The head that follows a label at once, until the heads of the folds are trained."""

from pathlib import Path

import numpy as np

from dist_net.data.image_folder import ImageFolder
from dist_net.data.image_split import LabelledImage
from dist_net.data.samples import ArraySamples
from dist_net.errors import ImageError
from dist_net.photos.bases import FeatureExtractor
from dist_net.photos.head import FeatureRows, train_head
from dist_net.photos.image_run import TrainedImages

MAX_NEW = 8


class InterimHead:
    """Trains one head, with the penalty, the distance and the threshold of ``trained``.

    It keeps the features of each image file that training used; None for the other files.
    """

    def __init__(self, trained: TrainedImages, extractor: FeatureExtractor) -> None:
        files, head = trained.images.folder.images, trained.head
        assert head is not None
        self._trained, self._extractor, self._penalty = trained, extractor, head.heads.penalty
        used = zip((_file(files[row]) for row in head.rows.tolist()), head.features, strict=True)
        self._features: dict[LabelledImage, FeatureRows | None]
        self._features = {**dict.fromkeys(map(_file, files)), **dict(used)}

    def train(self, folder: ImageFolder) -> TrainedImages | None:
        """Return a run with the head of a folder; None for other classes or many new images.

        A process that can be thrown away has decoded each new image before its label was set.
        """
        new = [each for each in folder.images if _file(each) not in self._features]
        if folder.class_names != self._trained.recipe.class_names or len(new) > MAX_NEW:
            return None
        for each in new:
            self._features[_file(each)] = self._computed(folder.root / each.path)
        found = [self._features[_file(each)] for each in folder.images]
        labels = [lab for lab, each in zip(folder.labels, found, strict=True) if each is not None]
        features = np.stack([each for each in found if each is not None])
        head = train_head(features, np.array(labels), len(folder.class_names), self._penalty)
        weights = self._trained.weights.copy()
        for name, value in head._asdict().items():
            self._trained.recipe.model.layout.views(weights)[f"head/{name}"][...] = value
        return self._trained._replace(weights=weights)

    def _computed(self, file: Path) -> FeatureRows | None:
        """Return the features, (F,); None for a damaged file, which the next training reports."""
        try:
            pixels = self._trained.images.preprocessing.input_of(file)
        except ImageError:
            return None
        (features,) = self._extractor.features_of(ArraySamples(pixels[None]))
        return np.asarray(features)


def _file(image: LabelledImage) -> LabelledImage:
    return image._replace(class_name="", part="")
