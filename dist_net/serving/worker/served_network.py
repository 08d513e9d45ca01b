"""A version of a model in an inference worker: computes the results of payloads."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Self

import numpy as np

from dist_net.autodiff.kernels.thread_pool import MAX_THREADS
from dist_net.errors import ImageError, ModelLoadError, SettingError, TensorInputError
from dist_net.ground.clock import SystemClock
from dist_net.images.decoding import BOUNDED_FORMATS, BYTES_PER_PIXEL, MAX_PIXELS
from dist_net.images.fitting import ImageInputs
from dist_net.nets.architecture import OnnxArchitecture
from dist_net.nets.foreign_onnx import ForeignModel, OnnxSession, open_session, outputs_by_name
from dist_net.nets.tensor_specs import Tensors, from_bytes, to_bytes
from dist_net.nn import Model
from dist_net.nn.inference import Prepared, softmax
from dist_net.serving.pool.description import MEMORY_BYTES, MEMORY_PER_BYTE, ModelDescription
from dist_net.serving.pool.requests import Payload, Status
from dist_net.wire.serving_messages import MAX_REQUEST_BYTES, BatchDone, RunBatch

NOT_FINITE = (
    b"the net's outputs for this image are not finite; expected probabilities: its weights are "
    b"too large, or of another net"
)

NO_MEMORY = "std::bad_alloc", "Failed to allocate memory"  # in errors of ONNX Runtime
BYTES_PER_VALUE = 32  # of memory between a net's inputs and outputs, for each byte of these
MAX_ANSWER_BYTES = 64 << 20
TOO_LARGE = b"the outputs for this input are too large; expected at most 64 MiB"

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
    ) -> None:
        self.description = description
        self._model: Model | ForeignModel
        if isinstance(architecture := description.architecture, OnnxArchitecture):
            self._model = ForeignModel(
                description.inputs,
                description.outputs,
                description.is_batched,
                architecture.rows_alone,
            )
        else:
            self._model = architecture.build(description.name, settings.trust_recipes)
        self._images = (
            ImageInputs(self._model, settings.max_pixels, description.fitting, BOUNDED_FORMATS)
            if description.takes_images
            else None
        )
        self._settings = settings
        self._decoders = ThreadPoolExecutor(settings.threads, "decode")  # which start on demand
        self._clock = SystemClock()
        self._session = open_session(
            self._model, prepared, settings.threads, settings.max_batch_size, settings.reproducible
        )
        try:
            self._session.warm_up(may_go_on)
            self._require_numbers()
        except BaseException:
            self.close()
            raise

    def rebound(self, description: ModelDescription, prepared: Prepared) -> Self | None:
        """Return another version of the same architecture that shares this one's plans.

        None if the plans are gone; any thread may call it. Raise ModelLoadError, ShapeError.
        """
        session = self._session.rebound(prepared)
        if session is None:
            return None
        other = copy(self)
        other.description, other._session = description, session
        other._decoders = ThreadPoolExecutor(self._settings.threads, "decode")
        try:
            other._require_numbers()
        except BaseException:
            other.close()
            raise
        other._decoders.submit(session.bind)  # it may answer before
        return other

    @property
    def memory_bytes(self) -> int:
        """The maximum memory of a batch, to read, decode and compute it."""
        description, settings = self.description, self._settings
        values = MAX_REQUEST_BYTES
        if description.is_batched:
            row_bytes = description.row_bytes + description.result_bytes
            values = settings.max_batch_size * row_bytes
        pixels = settings.threads * settings.max_pixels * description.takes_images
        read_bytes = MEMORY_BYTES + MEMORY_PER_BYTE * description.arrays_bytes
        return read_bytes + BYTES_PER_PIXEL * pixels + BYTES_PER_VALUE * values

    def close(self) -> None:
        """End the threads, if no other version uses them."""
        self._session.close()
        self._decoders.shutdown()

    def _require_numbers(self) -> None:
        """Raise ``ModelLoadError`` for weights with outputs that are not finite."""
        if isinstance(self._session, OnnxSession):  # of which zeros may be no input
            return
        specs = self.description.inputs
        nothing = {each.name: np.zeros((1, *each.shape), each.dtype) for each in specs}
        if not all(np.isfinite(array).all() for array in self._outputs(nothing).values()):
            raise ModelLoadError(
                f"{self.description.name} version {self.description.version} gives outputs that "
                f"are not finite for an input of zeros; expected probabilities. Its weights are "
                f"too large, or belong to another net"
            )

    def answer(self, run: RunBatch) -> BatchDone:
        """Return the result of each payload: an image, or the tensors of a request.

        A bad payload does not affect the others. Numbers out of range are computed as in NumPy.
        """
        begun_s = self._clock.now()
        inputs = self._decoded(run.payloads) if run.is_image else [*map(self._parsed, run.payloads)]
        usable = [each for each in inputs if isinstance(each, dict)]
        prepared_s = self._clock.now()
        computed = iter(self._computed(usable, run.is_image) if usable else ())
        results = [next(computed) if isinstance(each, dict) else each for each in inputs]
        computed_s = self._clock.now()
        return BatchDone(
            run.batch_id,
            bytes(status for status, _ in results),
            prepared_s - begun_s,
            computed_s - prepared_s,
            tuple(payload for _, payload in results),
        )

    def _computed(self, inputs: Sequence[Tensors], is_image: bool) -> list[tuple[Status, Payload]]:
        """Return the result of each request, computed together if the model is batched."""
        if len(inputs) > 1 and self.description.is_batched:
            names = list(inputs[0])
            stops = np.cumsum([len(each[names[0]]) for each in inputs])[:-1]
            together = {name: np.concatenate([each[name] for each in inputs]) for name in names}
            with suppress(TensorInputError):  # of one request, which fails below
                outputs = self._outputs(together)
                parts = zip(*(np.split(each, stops) for each in outputs.values()), strict=True)
                own = (dict(zip(outputs, part, strict=True)) for part in parts)
                return [self._result(each, is_image) for each in own]
        return [self._alone(each, is_image) for each in inputs]

    def _alone(self, inputs: Tensors, is_image: bool) -> tuple[Status, Payload]:
        try:
            return self._result(self._outputs(inputs), is_image)
        except TensorInputError as error:
            return Status.BAD_INPUT, str(error).encode()

    def _result(self, outputs: Tensors, is_image: bool) -> tuple[Status, Payload]:
        if is_image and not all(np.isfinite(array).all() for array in outputs.values()):
            return Status.BAD_INPUT, NOT_FINITE
        payload = to_bytes(outputs, self.description.outputs, self.description.is_batched)
        is_small = len(payload) <= MAX_ANSWER_BYTES
        return (Status.OK, payload) if is_small else (Status.BAD_INPUT, TOO_LARGE)

    def _outputs(self, inputs: Tensors) -> Tensors:
        """Return the outputs of a batch by name, probabilities for logits.

        Raise TensorInputError, MemoryError.
        """
        try:
            found = outputs_by_name(self._model, self._session, inputs, self.description.outputs)
        except TensorInputError as error:
            if any(each in str(error) for each in NO_MEMORY):
                raise MemoryError(str(error)) from error
            raise
        with np.errstate(invalid="ignore"):  # of numbers that are not finite
            has_logits = self.description.has_logits
            return {name: softmax(each) if has_logits else each for name, each in found.items()}

    def _decoded(self, payloads: Sequence[Payload]) -> list[Tensors | Refusal]:
        alone = self._settings.threads == 1 or len(payloads) == 1
        return list((map if alone else self._decoders.map)(self._image, payloads))

    def _image(self, payload: Payload) -> Tensors | Refusal:
        name, _, shape = self.description.inputs[0]
        if self._images is None:
            return Status.BAD_INPUT, f"a model of inputs {shape} takes no images".encode()
        try:
            return {name: self._images.fit(BytesIO(payload))[np.newaxis]}
        except ImageError as error:
            return Status.BAD_INPUT, str(error).encode()

    def _parsed(self, payload: Payload) -> Tensors | Refusal:
        description = self.description
        try:
            tensors = from_bytes(payload, description.inputs, description.is_batched)
            if not payload:
                raise ValueError("no rows")
        except ValueError as error:
            expected = f"one or more rows of {description.row_bytes:,} bytes each"
            if not description.is_batched:
                expected = "the tensors of a request, behind their shapes"
            return (
                Status.BAD_INPUT,
                f"{error}: {len(payload):,} bytes; expected {expected}".encode(),
            )
        return tensors
