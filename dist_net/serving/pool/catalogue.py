"""The models of a pool: their versions, the requests to read them, and pending reloads.

reload ─▶ ReadModel ─▶ (a process reads) ─▶ ModelPrepared ─▶ workers load ─▶ EndRequest
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_net.errors import BadInputError, ModelLoadError, ProtocolError
from dist_net.serving.pool.description import EncodedImage, ModelDescription, ServedModel
from dist_net.serving.pool.requests import (
    EndRequest,
    PoolCommand,
    ReadModel,
    RemoveArrays,
    Result,
    Status,
)
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import ModelPrepared

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Reload:
    """A reload, which ``requested`` or a later request ends by ``version``, the ``place``-th."""

    request_id: int
    requested: int
    place: int | None = None
    version: int = 0
    result: Result | None = None


class Catalogue:
    """All models by name; call ``advance`` after any event. A later request replaces another."""

    def __init__(self, names: Sequence[str]) -> None:
        self.models: dict[str, ModelVersions] = {}
        self._answers: dict[str, ModelPrepared] = {}
        self._newest: dict[str, int] = {}  # the last number, requested or received
        self._requested: dict[str, tuple[int, float]] = {}  # unanswered, each with its share
        self._unsent: dict[str, ReadModel] = {}
        self._reloads: dict[str, list[_Reload]] = {}
        for name in names:
            self.add(ModelVersions(name))
            self._prepare(name)

    # Served models

    def served(self) -> Mapping[str, ServedModel]:
        return {name: model.served() for name, model in self.models.items()}

    def wanted(self) -> list[ModelVersions]:
        return [model for model in self.models.values() if not model.is_unloaded]

    def description(self, model: str, version: int | None) -> ModelDescription | None:
        """Return the description of a version, by default the newest; None if it is not served."""
        found = self.models.get(model)
        return None if found is None else found.description(version)

    # Reading models

    def add(self, model: ModelVersions) -> None:
        """Add a model without a version; ``reload`` serves it."""
        self.models[model.name] = model
        self._newest[model.name], self._reloads[model.name] = 0, []

    def reload(self, model: str, request_id: int, share: float = 1.0) -> None:
        """Read a model again. The request ends when workers serve it, or it failed."""
        self._reloads[model].append(_Reload(request_id, self._prepare(model, share)))

    def prepare_again(self, model: str) -> None:
        """Read a model again after its file of arrays was removed, unless it is being read."""
        if model not in self._requested and not self.models[model].is_unloaded:
            logger.warning("arrays_removed model=%s", model)
            self._prepare(model)

    def unload(self, model: str, reason: str) -> None:
        self.models[model].unload(reason)
        for reload in self._reloads[model]:
            reload.result = reload.result or Result(Status.FAILED, reason=reason)

    def prepared(self, message: ModelPrepared) -> None:
        name, reason = message.model, message.reason
        model = self.models[name]
        self._newest[name] = max(self._newest[name], message.version)
        self._answers[name] = message
        requested, share = self._requested.get(name, (0, 1.0))
        if requested == message.requested:
            self._requested.pop(name, None)
        else:
            share = 1.0
        if model.is_unloaded and all(each.result is not None for each in self._reloads[name]):
            logger.info("version_ignored model=%s reason=unloaded", name)
            model.unused.append(message.version)
            return
        reason = reason or _add_version(model, message, share)
        for reload in self._reloads[name]:
            # A version that arrived unrequested, or was read before the reload, does not count.
            if reload.place is None and reload.requested <= message.requested:
                reload.place, reload.version = model.came, message.version
                if reason:
                    reload.result = Result(Status.BAD_INPUT, reason=reason)
        if reason:
            logger.warning("prepare_failed model=%s reason=%s", name, reason)
            model.reason = reason

    def advance(self) -> list[PoolCommand]:
        """Return the requests to read models, and end the reloads with a settled version."""
        commands: list[PoolCommand] = [*self._unsent.values()]
        self._unsent.clear()
        for name, reloads in self._reloads.items():
            model = self.models[name]
            commands += [RemoveArrays(name, version) for version in model.unused]
            model.unused.clear()
            for reload in [*reloads]:
                result = reload.result
                if result is None and reload.place is not None and model.done >= reload.place:
                    result = _rolled_out(reload.version, model)
                if result is not None:
                    reloads.remove(reload)
                    commands.append(EndRequest(reload.request_id, result))
        return commands

    def failures(self, has_workers: bool) -> list[ModelLoadError]:
        """Return the errors of models that were not read, or that no worker can load any more."""
        failures = []
        for name, answer in self._answers.items():
            model, reason = self.models[name], answer.reason
            if model.is_unloaded or model.is_ready:
                continue
            if reason or (has_workers and model.done == model.came):
                failures.append(ModelLoadError(f"model {name}: {reason or model.reason}"))
                if answer.is_bad_input:
                    failures[-1].exit_code = BadInputError.exit_code
        return failures

    def _prepare(self, model: str, share: float = 1.0) -> int:
        """Request the next version; return its number. A training run numbers its versions."""
        number = self._newest[model] = self._newest[model] + 1
        self._requested[model] = number, share
        self._unsent[model] = ReadModel(model, number)
        return number


def _add_version(model: ModelVersions, message: ModelPrepared, share: float) -> str:
    try:
        description = ModelDescription.from_json(message.description)
    except ProtocolError as error:
        return str(error)
    parts = [bytes(each) for each in message.payloads]  # copies, since they are kept for long
    samples = tuple(
        EncodedImage(label.decode(errors="replace"), image)
        for label, image in zip(parts[::2], parts[1::2], strict=False)
    )
    model.prepared(Version(description, message.description, samples, share))
    return ""


def _rolled_out(version: int, model: ModelVersions) -> Result:
    newest = model.newest_number
    if version == newest or model.may_name(version):
        return Result(Status.OK, version=version)
    if model.newest is not None and not model.reason:  # a later version replaced it
        return Result(Status.OK, version=newest)
    return Result(Status.FAILED, reason=model.reason)
