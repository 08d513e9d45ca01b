"""A classifier of pictures: a model with its weights and its labels, ready to predict."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dist_net.darknet.configuration import Configuration
from dist_net.darknet.labels import read_labels, require_labels
from dist_net.darknet.network import DarknetNetwork
from dist_net.darknet.weights import read_weights, unreadable
from dist_net.errors import (
    ImageError,
    PredictionError,
    PreparedKernelsError,
    WeightsFileError,
)
from dist_net.nn import Model
from dist_net.nn.inference import Inference, Prepared, prepare, softmax
from dist_net.nn.prepared import key_of, map_prepared, write_prepared
from dist_net.pictures.decoding import Source, name_of
from dist_net.pictures.inputs import PictureInputs
from dist_net.pictures.predictions import Prediction, predictions_of

logger = logging.getLogger(__name__)


Answer = list[Prediction] | ImageError | PredictionError
"""The answer for one picture: the likeliest classes, or why there are none."""


class Classifier:
    """Says what pictures show, by a model and the kernels prepared from its weights.

    See ``PictureInputs`` for the models that can. ``has_logits``: its outputs are not yet
    probabilities. At most ``batch_size`` pictures are in memory at a time. Raises ShapeError for a
    model that takes no pictures, and LabelsError unless there is one label for each class.
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
    ) -> None:
        require_labels(labels, model.classes)
        self.labels = tuple(labels)
        self._inputs = PictureInputs(model, fitting=fitting)
        self._has_logits = has_logits
        self._batch_size = batch_size
        self._outputs = Inference(model, prepared, threads, batch_size)

    def close(self) -> None:
        """Ends its threads."""
        self._outputs.close()

    def predict(self, pictures: Iterable[Source], top: int = 5) -> list[Answer]:
        """The ``top`` likeliest classes of each picture, likeliest first; all if there are fewer.

        Classes that are equally likely keep their order. In place of a picture that cannot be
        classified stands its error.
        """
        return list(self.predict_each(pictures, top))

    def predict_each(self, pictures: Iterable[Source], top: int = 5) -> Iterator[Answer]:
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

    def _input(self, picture: Source) -> NDArray[np.generic] | ImageError:
        try:
            return self._inputs.of(picture)
        except ImageError as error:
            return error

    def _probabilities(self, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
        outputs = self._outputs(inputs)
        return softmax(outputs) if self._has_logits else outputs

    def _likeliest(
        self, probabilities: NDArray[np.float32], picture: Source, top: int
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
    network = DarknetNetwork(configuration)
    model = Model(network, network.input_shape, input_dtype=np.float32)
    names = read_labels(labels, model.classes) if isinstance(labels, Path) else labels
    prepared = prepared_kernels(model, network, weights).prepared
    return Classifier(model, prepared, names, batch_size=batch_size, threads=threads)


class KeptKernels(NamedTuple):
    """The kernels prepared from a file of weights, and a key that changes with the weights.

    ``file`` is where they are kept under that key; None if nowhere.
    """

    prepared: Prepared
    key: str
    file: Path | None


def prepared_kernels(model: Model, network: DarknetNetwork, weights: Path) -> KeptKernels:
    """The kernels prepared from the weights in a file; kept beside it for the next time.

    Raises WeightsFileError if the weights cannot be read, or change meanwhile.
    """
    try:
        key = key_of(model, weights)
    except OSError as error:
        raise unreadable(weights, error) from error
    file = prepared_beside(weights)
    mapped = map_prepared(file, key)
    if mapped is not None:
        return KeptKernels(mapped, key, file)
    prepared = prepare(model, read_weights(weights, network))
    if key_of(model, weights) != key:
        raise WeightsFileError(
            f"{weights}: has changed while it was read; expected a file that is complete: try again"
        )
    try:
        write_prepared(file, prepared, key)
    except PreparedKernelsError as error:
        logger.warning("kernels_not_kept reason=%s", error)
        return KeptKernels(prepared, key, None)
    return KeptKernels(prepared, key, file)


def prepared_beside(weights: Path) -> Path:
    """The file for the kernels that were prepared from a file of weights."""
    return weights.with_name(f"{weights.name}.prepared")
