"""The models of a pool: their versions, the requests to the loader, and pending reloads.

reload ─▶ PrepareModel ─▶ (the loader reads) ─▶ ModelPrepared ─▶ workers load ─▶ EndRequest
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_net.errors import BadInputError, ModelLoadError, ProtocolError
from dist_net.serving.pool.description import EncodedImage, ModelDescription, ServedModel
from dist_net.serving.pool.requests import (
    EndRequest,
    EvictWorker,
    PoolCommand,
    Result,
    SendToNode,
    Status,
)
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import Drop, JoinAsLoader, ModelPrepared, PrepareModel

logger = logging.getLogger(__name__)

LOADER_BEATS_S = 1.0
LOADER_SILENT_S = 10.0
"""A loader that is silent for this long hangs. It has a low priority, so it may be late."""


@dataclass(slots=True, eq=False)
class _Reload:
    """A pending reload, which request ``requested`` to the loader, or a later one, satisfies.

    The result is ``version``, the ``place``-th of its model.
    """

    request_id: int
    requested: int
    place: int | None = None
    version: int = 0
    result: Result | None = None


class Catalogue:
    """All models by name, and their loader: the peer that knows ``token``.

    The token prevents other peers from naming files, which workers may fetch. A request for a model
    replaces an unanswered one. If the loader ends, the next loader receives the unanswered
    requests.
    ``loader_heard_s``: when it was last heard.

    After any event call ``advance`` for the resulting commands.
    """

    def __init__(self, names: Sequence[str], token: bytes) -> None:
        self.models = {name: ModelVersions(name) for name in names}
        self._answers: dict[str, ModelPrepared] = {}
        self._token = token
        self._loader: bytes | None = None
        self._process = 0, ""  # its id and host
        self.loader_heard_s = 0.0
        self._newest = dict.fromkeys(names, 0)  # the last number, requested or received
        self._requested: dict[str, int] = {}  # unanswered requests
        self._sent: set[str] = set()  # the models that this loader was sent a request for
        self._reloads: dict[str, list[_Reload]] = {name: [] for name in names}
        for name in names:
            self._prepare(name)

    # Served models

    def served(self) -> Mapping[str, ServedModel]:
        """Return every model by name, as interfaces see it."""
        return {name: model.served() for name, model in self.models.items()}

    def wanted(self) -> list[ModelVersions]:
        """Return the models to serve: all except unloaded models."""
        return [model for model in self.models.values() if not model.is_unloaded]

    def description(self, model: str, version: int | None) -> ModelDescription | None:
        """Return the description of a version, by default the newest; None if it is not served."""
        found = self.models.get(model)
        if found is None:
            return None
        one = found.newest if version is None else found.versions.get(version)
        return None if one is None else one.description

    # Reading models

    def reload(self, model: str, request_id: int) -> None:
        """Read a model again. The request ends when workers serve it, or it failed."""
        self._reloads[model].append(_Reload(request_id, self._prepare(model)))

    def prepare_again(self, model: str) -> None:
        """Read a model again after its file of arrays was removed, unless it is being read."""
        if model not in self._requested and not self.models[model].is_unloaded:
            logger.warning("arrays_removed model=%s", model)
            self._prepare(model)

    def unload(self, model: str, reason: str) -> None:
        """Stop serving a model until it is reloaded; pending reloads fail."""
        self.models[model].unload(reason)
        for reload in self._reloads[model]:
            reload.result = reload.result or Result(Status.FAILED, reason=reason)

    def loader_joined(self, node: bytes, message: JoinAsLoader, now: float) -> bool:
        """Admit a peer as the loader; return False if its token is wrong."""
        if not hmac.compare_digest(message.token, self._token):
            return False
        logger.info("loader_joined process=%d", message.process_id)
        self._loader_gone()
        self._loader, self._process = node, (message.process_id, message.host)
        self.loader_heard_s = now
        return True

    def is_loader(self, node: bytes) -> bool:
        return node == self._loader

    def is_loader_process(self, process_id: int, host: str) -> bool:
        return self._loader is not None and self._process == (process_id, host)

    def hanging_loader(self, now: float) -> EvictWorker | None:
        """Return the command to kill a silent loader."""
        if self._loader is None or now - self.loader_heard_s < LOADER_SILENT_S:
            return None
        return EvictWorker(self._loader, *self._process, f"silent for {LOADER_SILENT_S:g} s")

    def loader_ended(self, process_id: int, host: str) -> None:
        """Process the exit of a process, which may be the loader."""
        if self.is_loader_process(process_id, host):
            self._loader_gone()

    def prepared(self, message: ModelPrepared) -> None:
        """Process the loader's answer: a version, or the reason of a failure."""
        name, reason = message.model, message.reason
        model = self.models[name]
        self._newest[name] = max(self._newest[name], message.version)
        self._answers[name] = message
        if self._requested.get(name) == message.requested:
            del self._requested[name]
            self._sent.discard(name)
        if model.is_unloaded and all(each.result is not None for each in self._reloads[name]):
            logger.info("version_ignored model=%s reason=unloaded", name)
            model.unused.append(message.version)
            return
        reason = reason or _add_version(model, message)
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
        """Return the requests to the loader, and end the reloads with a settled version."""
        commands: list[PoolCommand] = []
        if self._loader is not None:
            for name, number in self._requested.items():
                if name not in self._sent:
                    self._sent.add(name)
                    commands.append(SendToNode(self._loader, PrepareModel(name, number)))
        for name, reloads in self._reloads.items():
            model = self.models[name]
            while self._loader is not None and model.unused:
                drop = Drop(name, model.unused.pop())
                commands.append(SendToNode(self._loader, drop))
            for reload in [*reloads]:
                result = reload.result
                if result is None and reload.place is not None and model.done >= reload.place:
                    result = _rolled_out(reload.version, model)
                if result is not None:
                    reloads.remove(reload)
                    commands.append(EndRequest(reload.request_id, result))
        return commands

    def failures(self, has_workers: bool) -> list[ModelLoadError]:
        """Return the errors of models that could not be read, or that no worker could load.

        Models that may still be loaded are not included.
        """
        failures = []
        for name, answer in self._answers.items():
            model, reason = self.models[name], answer.reason
            if not model.is_ready and (reason or (has_workers and model.done == model.came)):
                failures.append(ModelLoadError(f"model {name}: {reason or model.reason}"))
                if answer.is_bad_input:
                    failures[-1].exit_code = BadInputError.exit_code
        return failures

    def _prepare(self, model: str) -> int:
        """Request the model's next version from the loader; return its number.

        A version of a training run has the run's number instead.
        """
        number = self._newest[model] = self._newest[model] + 1
        self._requested[model] = number
        self._sent.discard(model)
        return number

    def _loader_gone(self) -> None:
        self._loader = None
        self._sent.clear()


def _add_version(model: ModelVersions, message: ModelPrepared) -> str:
    """Add a new version to the model; return the reason of a failure, or ""."""
    try:
        description = ModelDescription.from_json(message.description)
    except ProtocolError as error:
        return str(error)
    parts = [bytes(each) for each in message.payloads]  # copies, since they are kept for long
    samples = tuple(
        EncodedImage(label.decode(errors="replace"), image)
        for label, image in zip(parts[::2], parts[1::2], strict=False)
    )
    model.prepared(Version(description, message.description, samples))
    return ""


def _rolled_out(version: int, model: ModelVersions) -> Result:
    newest = model.newest_number
    if version == newest or model.may_name(version):
        return Result(Status.OK, version=version)
    if model.newest is not None and not model.reason:  # a later version replaced it
        return Result(Status.OK, version=newest)
    return Result(Status.FAILED, reason=model.reason)
