"""The model loader's loop: reads models from their sources for the gateway and its workers."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from dist_net.clock import Clock, SystemClock
from dist_net.errors import (
    BadInputError,
    DistNetError,
    JoinRefusedError,
    ModelLoadError,
    RunDirectoryError,
)
from dist_net.models.sample_pictures import sample_pictures
from dist_net.models.sources import FollowedRun, FoundModel, ModelSource
from dist_net.nn.prepared import map_prepared, write_prepared
from dist_net.recipes.recipe import LoadedRecipe
from dist_net.serving.pool.description import TYPE_CODES, ModelDescription
from dist_net.serving.worker.prepared_arrays import keep_newest
from dist_net.wire.messages import Message, Refuse
from dist_net.wire.serving_messages import Enlisted, EnlistLoader, ModelPrepared, PrepareModel
from dist_net.wire.transport import ClientSocket

logger = logging.getLogger(__name__)

_DATATYPES = {np.dtype(code): name for name, code in TYPE_CODES.items()}

POLL_S = 0.1
ANSWER_WITHIN_S = 10.0
FOLLOW_EVERY_S = 1.0
LONGEST_PAUSE_S = 30.0  # between attempts to reach a training run that does not answer


@dataclass
class _Followed:
    """A training run that is followed: its last version, and when to look for the next."""

    source: FollowedRun
    version: int
    due_s: float
    pause_s: float = FOLLOW_EVERY_S


class ModelLoader:
    """Reads models when the gateway at ``address`` asks for them, and follows training runs.

    ``directory``: for arrays that have no file. ``token`` shows the gateway that this is its
    loader.
    """

    def __init__(
        self,
        address: str,
        sources: Mapping[str, ModelSource],
        directory: Path,
        token: bytes = b"",
        clock: Clock | None = None,
    ) -> None:
        self._sources = sources
        self._directory = directory
        self._token = token
        self._clock = clock or SystemClock()
        self._socket = ClientSocket(address)
        # The gateway asks for each model first, unless another loader has read it before this one.
        due_s = self._clock.now() + FOLLOW_EVERY_S
        self._followed = {
            name: _Followed(source, -1, due_s)
            for name, source in sources.items()
            if isinstance(source, FollowedRun)
        }
        self._leave_reason: str | None = None

    def stop(self, reason: str) -> None:
        """Ends at the next turn of the loop; a signal handler may call it."""
        self._leave_reason = reason

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def serve(self) -> str:
        """Returns why it ended.

        Raises NoAnswerError if the gateway does not answer at first, and JoinRefusedError if it
        refuses this loader.
        """
        self._socket.send(EnlistLoader(os.getpid(), self._token))
        message = self._socket.receive(ANSWER_WITHIN_S)
        if message is None:
            raise self._socket.no_answer(ANSWER_WITHIN_S)
        while self._leave_reason is None:
            if message is not None:
                self._handle(message)
            self._follow()
            message = self._socket.receive(POLL_S)
        return self._leave_reason

    def _handle(self, message: Message) -> None:
        match message:
            case PrepareModel(model, version):
                self._socket.send(self._prepare(model, version))
            case Refuse(reason):
                raise JoinRefusedError(f"the gateway refuses this loader: {reason}")
            case Enlisted():
                logger.info("enlisted models=%s", ",".join(self._sources))
            case _:
                logger.warning("unexpected_message type=%s", type(message).__name__)

    def _prepare(self, model: str, version: int) -> ModelPrepared:
        """The answer to a `PrepareModel`."""
        source = self._sources.get(model)
        if source is None:
            return ModelPrepared(model, version, "", f"there is no source of {model!r}", version)
        try:
            with _as_own_errors():
                return self._read(model, source, version)._replace(requested=version)
        except DistNetError as error:
            logger.warning("not_prepared model=%s error=%s", model, error)
            is_bad_input = isinstance(error, BadInputError)
            return ModelPrepared(model, version, "", str(error), version, is_bad_input)

    def _read(self, model: str, source: ModelSource, version: int) -> ModelPrepared:
        """Reads a model and writes its arrays to a file. Raises a DistNetError."""
        found = source.read()
        if found.version is not None:
            version = self._followed[model].version = found.version
        description = described(found, model, version, self._directory)
        samples = _samples(found, model)
        logger.info("prepared model=%s version=%d samples=%d", model, version, len(samples) // 2)
        return ModelPrepared(model, version, description.to_json(), "", payloads=samples)

    def _follow(self) -> None:
        """Passes on new versions of training runs, at most one a second of each."""
        for model, followed in self._followed.items():
            begun_s = self._clock.now()
            if begun_s < followed.due_s:
                continue
            try:
                with _as_own_errors():
                    if followed.source.version() != followed.version:
                        self._socket.send(self._read(model, followed.source, 0))
                followed.pause_s = FOLLOW_EVERY_S
            except DistNetError as error:
                followed.pause_s = min(2 * followed.pause_s, LONGEST_PAUSE_S)
                logger.warning("not_followed model=%s error=%s", model, error)
            followed.due_s = begun_s + followed.pause_s


@contextmanager
def _as_own_errors() -> Iterator[None]:
    """Any exception ends this attempt to read a model, but not the loader: a recipe is somebody
    else's code, and a file or a server may hold anything."""
    try:
        yield
    except DistNetError:
        raise
    except Exception as error:
        logger.exception("not_read")
        raise ModelLoadError(f"{type(error).__name__}: {error}") from error


def _samples(found: FoundModel, name: str) -> tuple[bytes, ...]:
    """The payloads of a `ModelPrepared`; none if the run's pictures are damaged."""
    try:
        held_out = found.held_out()
    except RunDirectoryError as error:
        logger.warning("no_samples model=%s error=%s", name, error)
        return ()
    if held_out is None:
        return ()
    pictures = sample_pictures(held_out, found.labels, found.fitting)
    return tuple(part for label, png in pictures for part in (label.encode(), png))


def described(found: FoundModel, name: str, version: int, directory: Path) -> ModelDescription:
    """Describes a model for the gateway and its workers, once its arrays are in a file.

    They are written to ``directory`` unless they have a file; it keeps the newest few files of each
    model. Raises PreparedKernelsError if they cannot be written.
    """
    model, recipe = found.model, found.recipe
    file = found.file
    if file is None:
        file = directory / f"{name}.{found.key[:32]}.prepared"
        if map_prepared(file, found.key) is None:
            write_prepared(file, found.prepared, found.key)
        else:
            file.touch()  # it is the newest again
        keep_newest(directory, name)
    return ModelDescription(
        name=name,
        version=version,
        input_datatype=_DATATYPES[model.input_dtype],
        input_shape=model.input_shape,
        classes=model.classes,
        labels=found.labels,
        takes_pictures=found.takes_pictures,
        has_logits=found.has_logits,
        configuration=found.configuration,
        pretrained=found.pretrained,
        picture_recipe=found.picture_recipe,
        unknown_below=found.unknown_below,
        recipe=_found_at(recipe) if recipe else "",
        recipe_original=recipe.reference if recipe else "",
        recipe_files=recipe.file_digests if recipe else {},
        fitting=found.fitting,
        has_classes=bool(found.labels),
        arrays_path=str(file.absolute()),
        arrays_bytes=file.stat().st_size,
        arrays_key=found.key,
    )


def _found_at(recipe: LoadedRecipe) -> str:
    """The name or path by which a worker loads the recipe."""
    return recipe.reference if recipe.is_built_in else str(recipe.path.absolute())
