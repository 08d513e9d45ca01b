"""A classifier of images: a model with its weights and labels, ready to predict."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dist_net.errors import ImageError, ModelSourceError, NotFiniteError
from dist_net.images.decoding import ImageSource, name_of
from dist_net.images.fitting import ImageInputs
from dist_net.images.labels import Prediction, require_labels, top_predictions
from dist_net.nets.foreign_onnx import ForeignModel, open_session
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nn import Model
from dist_net.nn.inference import Prepared, softmax
from dist_net.nn.model import Batch

ClassifiedImage = list[Prediction] | ImageError | NotFiniteError
"""The result for one image: the likeliest classes, or an error."""


class Classifier:
    """Classifies images with a model and the kernels prepared from its weights.

    See ``ImageInputs`` for suitable models. ``has_logits``: the outputs are logits instead of
    probabilities. At most ``batch_size`` images are in memory at a time. ``compiled``: see
    ``Inference``.

    Raise ShapeError if the model's inputs cannot be images, and ModelFileError unless there is one
    label per class.
    """

    def __init__(
        self,
        model: Model | ForeignModel,
        prepared: Prepared,
        labels: Sequence[str],
        has_logits: bool = False,
        batch_size: int = 8,
        threads: int = 1,
        fitting: str = "pad",
        compiled: bool = True,
    ) -> None:
        require_labels(labels, model.classes)
        self.labels = tuple(labels)
        self._inputs = ImageInputs(model, fitting=fitting)
        self._has_logits = has_logits
        self._batch_size = batch_size
        self._outputs = open_session(model, prepared, threads, batch_size, compiled=compiled)

    def close(self) -> None:
        self._outputs.close()

    def predict(self, images: Iterable[ImageSource], top: int = 5) -> list[ClassifiedImage]:
        """Return the ``top`` likeliest classes of each image, likeliest first.

        Equally likely classes keep their order. An unusable image yields its error.
        """
        return list(self.predict_each(images, top))

    def predict_each(
        self, images: Iterable[ImageSource], top: int = 5
    ) -> Iterator[ClassifiedImage]:
        """Yield the results of ``predict`` after each batch."""
        waiting = iter(images)
        while batch := list(islice(waiting, self._batch_size)):
            inputs = [self._input(image) for image in batch]
            usable = [each for each in inputs if not isinstance(each, ImageError)]
            outputs = self._outputs(np.stack(usable)) if usable else np.empty((0, 1), np.float32)
            rows = iter(softmax(outputs) if self._has_logits else outputs)
            for image, found in zip(batch, inputs, strict=True):
                if isinstance(found, ImageError):
                    yield found
                else:
                    yield self._likeliest(next(rows), image, top)

    def _input(self, image: ImageSource) -> NDArray[np.generic] | ImageError:
        try:
            return self._inputs.fit(image)
        except ImageError as error:
            return error

    def _likeliest(
        self, probabilities: NDArray[np.float32], image: ImageSource, top: int
    ) -> list[Prediction] | NotFiniteError:
        if not np.isfinite(probabilities).all():
            return NotFiniteError(
                f"{name_of(image)}: the net's outputs are not finite; expected probabilities. "
                f"The weights are too large, or belong to another net"
            )
        return top_predictions(probabilities, self.labels, top)


def classifier_from(
    found: FoundModel, name: str, threads: int = 1, compiled: bool = True
) -> Classifier:
    """Return a classifier with the model ``found``, called ``name`` in errors.

    Raise ModelSourceError if its inputs are not images or its outputs not classes.
    """
    if not (found.labels and found.takes_images):
        what = "predicts numbers, not classes" if not found.labels else "takes no images"
        raise ModelSourceError(
            f"{name} {what}: it has inputs of {found.model.input_dtype}"
            f"{list(found.model.input_shape)}; expected rows of such inputs, in a .npy or .csv file"
        )
    return Classifier(
        found.model,
        found.prepared,
        found.labels,
        found.has_logits,
        threads=threads,
        fitting=found.fitting,
        compiled=compiled,
    )


def outputs_for(
    found: FoundModel, inputs: Batch, threads: int = 1, compiled: bool = True
) -> NDArray[np.float32]:
    """Return a row of outputs for each input: probabilities if the model has classes."""
    with closing(open_session(found.model, found.prepared, threads, compiled=compiled)) as session:
        outputs = session(inputs)
    return softmax(outputs) if found.labels and found.has_logits else outputs
