"""A version of a model in an inference worker: computes the results of payloads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dist_net.autodiff.kernels.thread_pool import MAX_THREADS
from dist_net.clock import Clock, SystemClock
from dist_net.errors import ImageError, ModelLoadError, SettingError
from dist_net.images.decoding import BOUNDED_FORMATS, MAX_PIXELS
from dist_net.images.fitting import ImageInputs
from dist_net.nn.inference import Inference, Prepared, softmax
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Payload, Status
from dist_net.wire.serving_messages import BatchDone, RunBatch

NOT_FINITE = (
    b"the net's outputs for this image are not finite; expected probabilities: its weights are "
    b"too large, or of another net"
)

Rows = NDArray[np.generic]
Refusal = tuple[Status, bytes]
"""BAD_INPUT or FAILED, and the reason in UTF-8."""


@dataclass(frozen=True)
class WorkerSettings:
    """Settings of a worker; it keeps fetched arrays in ``directory``.

    Each network has ``threads`` for batches of at most ``max_batch_size`` rows. ``reproducible``:
    see ``Inference``; ``trust_recipes``: see ``load_recipe_copy``.
    """

    directory: Path
    threads: int = 1
    max_batch_size: int = 8
    reproducible: bool = True
    max_pixels: int = MAX_PIXELS
    trust_recipes: bool = False

    def __post_init__(self) -> None:
        if min(self.threads, self.max_batch_size, self.max_pixels) < 1:
            raise SettingError(
                f"threads={self.threads}, max_batch_size={self.max_batch_size}, "
                f"max_pixels={self.max_pixels}: expected whole numbers from 1 up"
            )
        if self.threads > MAX_THREADS:
            raise SettingError(f"threads={self.threads:,}: expected at most {MAX_THREADS}")


def _decoders(threads: int) -> ThreadPoolExecutor | None:
    """Return threads that decode images, started on demand; None: the caller's thread decodes."""
    return ThreadPoolExecutor(threads, "decode") if threads > 1 else None


class ServedNetwork:
    """A model that answers batches.

    As many threads decode images as compute: a batch of images 640 pixels wide is ready in half
    the time, for as much memory as that many workers would need.

    ``prepared`` is borrowed. Compiling the plans, which takes a second for a large net, stops once
    ``may_go_on`` returns False.

    Raise ModelLoadError if this host lacks the described net; ShapeError for kernels of another
    model; and the errors of parsing a configuration or running a recipe.
    """

    def __init__(
        self,
        description: ModelDescription,
        prepared: Prepared,
        settings: WorkerSettings,
        may_go_on: Callable[[], bool] = lambda: True,
        clock: Clock | None = None,
    ) -> None:
        self.description = description
        self._model = description.architecture.build(description.name, settings.trust_recipes)
        self._dtype = self._model.input_dtype.newbyteorder("<")
        self._row_bytes = description.row_bytes
        self._images = (
            ImageInputs(self._model, settings.max_pixels, description.fitting, BOUNDED_FORMATS)
            if description.takes_images
            else None
        )
        self._threads = settings.threads
        self._decoders = _decoders(settings.threads)
        self._clock = clock or SystemClock()
        self._inference = Inference(
            self._model, prepared, settings.threads, settings.max_batch_size, settings.reproducible
        )
        try:
            self._inference.warm_up(may_go_on)
            self._require_numbers()
        except BaseException:
            self.close()
            raise

    def rebound(self, description: ModelDescription, prepared: Prepared) -> ServedNetwork | None:
        """Return another version of the same architecture that shares this one's plans.

        None if the plans are gone; see ``Inference.rebound``. It may be
        called by any thread. Raise ModelLoadError and ShapeError as for a new one.
        """
        inference = self._inference.rebound(prepared)
        if inference is None:
            return None
        other = copy(self)
        other.description, other._inference = description, inference
        other._decoders = _decoders(self._threads)
        try:
            other._require_numbers()
        except BaseException:
            other.close()
            raise
        return other

    def close(self) -> None:
        """End the threads, if no other version uses them."""
        self._inference.close()
        if self._decoders is not None:
            self._decoders.shutdown()

    def _require_numbers(self) -> None:
        """Raise ``ModelLoadError`` for weights whose outputs are not finite."""
        nothing = np.zeros((1, *self._model.input_shape), self._model.input_dtype)
        if not np.isfinite(self._inference(nothing)).all():
            raise ModelLoadError(
                f"{self.description.name} version {self.description.version} gives outputs that "
                f"are not finite for an input of zeros; expected probabilities. Its weights are "
                f"too large, or belong to another net"
            )

    def answer(self, run: RunBatch) -> BatchDone:
        """Return the result of each payload: an image, or a tensor of (rows, *input_shape).

        A bad payload does not affect the others. A tensor of NaN, or of numbers out of the net's
        range, is computed as in NumPy.
        """
        begun_s = self._clock.now()
        inputs = self._decoded(run.payloads) if run.is_image else [*map(self._tensor, run.payloads)]
        usable = [each for each in inputs if not isinstance(each, tuple)]
        rows = usable[0] if len(usable) == 1 else np.concatenate(usable) if usable else None
        prepared_s = self._clock.now()
        results = self._results(inputs, rows, run.is_image)
        computed_s = self._clock.now()
        return BatchDone(
            run.batch_id,
            bytes(status for status, _ in results),
            prepared_s - begun_s,
            computed_s - prepared_s,
            tuple(payload for _, payload in results),
        )

    def _results(
        self, inputs: Sequence[Rows | Refusal], rows: Rows | None, is_image: bool
    ) -> list[tuple[Status, bytes | memoryview]]:
        """Return the result of each input; ``rows`` are the inputs that were not refused."""
        if rows is None:
            return [each for each in inputs if isinstance(each, tuple)]
        outputs = self._inference(rows)
        if self.description.has_logits:
            with np.errstate(invalid="ignore"):  # of what is not finite
                outputs = softmax(outputs)
        results: list[tuple[Status, bytes | memoryview]] = []
        start = 0
        for each in inputs:
            if isinstance(each, tuple):
                results.append(each)
                continue
            own = slice(start, start + len(each))
            start = own.stop
            if is_image and not np.isfinite(outputs[own]).all():
                results.append((Status.BAD_INPUT, NOT_FINITE))
            else:
                results.append((Status.OK, outputs[own].astype("<f4", copy=False).data.cast("B")))
        return results

    def _decoded(self, payloads: Sequence[Payload]) -> list[Rows | Refusal]:
        """Return each image as a row for the model."""
        run = map if self._decoders is None or len(payloads) == 1 else self._decoders.map
        return list(run(self._image, payloads))

    def _image(self, payload: Payload) -> Rows | Refusal:
        if self._images is None:
            shape = self.description.input_shape
            return Status.BAD_INPUT, f"a model of inputs {shape} takes no images".encode()
        try:
            return self._images.fit(BytesIO(payload))[np.newaxis]
        except ImageError as error:
            return Status.BAD_INPUT, str(error).encode()

    def _tensor(self, payload: Payload) -> Rows | Refusal:
        rows, rest = divmod(len(payload), self._row_bytes)
        if rest or not rows:
            return (
                Status.BAD_INPUT,
                f"a tensor of {len(payload):,} bytes; expected one or more rows of "
                f"{self._row_bytes:,} bytes each".encode(),
            )
        flat = np.frombuffer(payload, self._dtype)
        return flat.reshape(rows, *self.description.input_shape, copy=False)
