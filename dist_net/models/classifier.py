"""A classifier of pictures: a model with its weights and its labels, ready to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.darknet.configuration import Configuration
from dist_net.data import Progress
from dist_net.errors import ImageError, PredictionError, UnknownModelError
from dist_net.models.sources import DarknetFiles, source_called
from dist_net.nn import Model
from dist_net.nn.inference import Inference, Prepared, softmax
from dist_net.pictures.decoding import ImageSource, name_of
from dist_net.pictures.fitting import PictureInputs
from dist_net.pictures.labels import Prediction, is_unknown, predictions_of, require_labels

ClassifiedImage = list[Prediction] | ImageError | PredictionError
"""The answer for one picture: the likeliest classes, or why there are none."""


class Classifier:
    """Says what pictures show, by a model and the kernels prepared from its weights.

    See ``PictureInputs`` for the models that can. ``has_logits``: its outputs are not yet
    probabilities. At most ``batch_size`` pictures are in memory at a time. ``unknown_below``: see
    ``is_unknown``; 0 if there is no threshold.

    Raises ShapeError for a model that takes no pictures, and LabelsError unless there is one label
    for each class.
    """

    def __init__(
        self,
        model: Model,
        prepared: Prepared,
        labels: Sequence[str],
        has_logits: bool = False,
        batch_size: int = 8,
        threads: int = 1,
        fitting: str = "pad",
        unknown_below: float = 0.0,
    ) -> None:
        require_labels(labels, model.classes)
        self.labels = tuple(labels)
        self.unknown_below = unknown_below
        self._inputs = PictureInputs(model, fitting=fitting)
        self._has_logits = has_logits
        self._batch_size = batch_size
        self._outputs = Inference(model, prepared, threads, batch_size)

    def close(self) -> None:
        self._outputs.close()

    def predict(self, pictures: Iterable[ImageSource], top: int = 5) -> list[ClassifiedImage]:
        """The ``top`` likeliest classes of each picture, likeliest first; all if there are fewer.

        Classes that are equally likely keep their order. In place of a picture that cannot be
        classified stands its error.
        """
        return list(self.predict_each(pictures, top))

    def predict_each(
        self, pictures: Iterable[ImageSource], top: int = 5
    ) -> Iterator[ClassifiedImage]:
        """The answers of ``predict`` one by one, as soon as a batch is done."""
        waiting = iter(pictures)
        while batch := list(islice(waiting, self._batch_size)):
            inputs = [self._input(picture) for picture in batch]
            usable = [each for each in inputs if not isinstance(each, ImageError)]
            rows = iter(self._probabilities(np.stack(usable)) if usable else ())
            for picture, found in zip(batch, inputs, strict=True):
                if isinstance(found, ImageError):
                    yield found
                else:
                    yield self._likeliest(next(rows), picture, top)

    def is_unknown(self, answer: Sequence[Prediction]) -> bool:
        """Whether no class of an answer is as probable as ``unknown_below``."""
        return is_unknown(answer, self.unknown_below)

    def _input(self, picture: ImageSource) -> NDArray[np.generic] | ImageError:
        try:
            return self._inputs.of(picture)
        except ImageError as error:
            return error

    def _probabilities(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        outputs = self._outputs(inputs)
        return softmax(outputs) if self._has_logits else outputs

    def _likeliest(
        self, probabilities: NDArray[np.float32], picture: ImageSource, top: int
    ) -> list[Prediction] | PredictionError:
        if not np.isfinite(probabilities).all():
            return PredictionError(
                f"{name_of(picture)}: the net's outputs are not finite; expected probabilities; "
                f"its weights are too large, or of another net"
            )
        return predictions_of(probabilities, self.labels, top)


def load_classifier(
    configuration: Configuration,
    weights: Path,
    labels: Sequence[str] | Path,
    batch_size: int = 8,
    threads: int = 1,
) -> Classifier:
    """The classifier of a Darknet configuration, with the weights in a file.

    ``labels`` are the names of the classes, or the file that has them. The kernels prepared from
    the weights are kept beside those, and mapped from there the next time. Raises what building
    the network, reading the files, and ``Classifier`` raise.
    """
    names = labels if isinstance(labels, Path) else tuple(labels)
    found = DarknetFiles(lambda: configuration, lambda: weights, names).read()
    return Classifier(
        found.model, found.prepared, found.labels, batch_size=batch_size, threads=threads
    )


def classifier_called(
    model: str,
    weights: Path | None,
    labels: Path | None,
    progress: Progress,
    threads: int = 1,
    trust_recipe: bool = False,
) -> Classifier:
    """The classifier that ``model`` names, which computes with ``threads`` threads.

    The arguments are those of ``source_called``. Raises what that, reading the model, and
    ``Classifier`` raise.
    """
    found = source_called(model, weights, labels, progress, trust_recipe=trust_recipe).read()
    if not found.labels:
        raise UnknownModelError(
            f"{model} predicts numbers and has no classes; expected a classifier: 'dist-net serve' "
            f"answers for any model"
        )
    if not found.takes_pictures:
        raise UnknownModelError(
            f"{model} has inputs of {found.model.input_dtype}{list(found.model.input_shape)}, "
            f"which are no pictures; expected uint8 of shape (H, W), (H, W, 1) or (H, W, 3)"
        )
    return Classifier(
        found.model,
        found.prepared,
        found.labels,
        found.has_logits,
        threads=threads,
        fitting=found.fitting,
        unknown_below=found.unknown_below,
    )
