"""The models of a pool: their versions, what the loader is asked to read, who waits for a reload.

reload ─▶ PrepareModel ─▶ (the loader reads) ─▶ ModelPrepared ─▶ workers load ─▶ EndRequest
"""

from __future__ import annotations

import hmac
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dist_net.errors import BadInputError, ModelLoadError, ProtocolError
from dist_net.serving.pool.description import EncodedImage, ModelDescription, ServedModel
from dist_net.serving.pool.requests import EndRequest, PoolCommand, Result, SendToNode, Status
from dist_net.serving.pool.versions import ModelVersions, Version
from dist_net.wire.serving_messages import JoinAsLoader, ModelPrepared, PrepareModel

logger = logging.getLogger(__name__)

MAX_CRASHES = 2
"""How often in a row a model may crash the loader before it is no longer tried again unasked."""


@dataclass(slots=True, eq=False)
class _Reload:
    """Somebody waits for a model to be read, by request ``requested`` to the loader or a later one.

    What then came is ``version``, the ``place``-th of its model.
    """

    request_id: int
    requested: int
    place: int | None = None
    version: int = 0
    result: Result | None = None


class Catalogue:
    """All models by name, and their loader: the peer that knows ``token``.

    The loader names files, which workers may fetch, so nobody else must pass for it. It has at most
    one request for each model; another one waits until that is answered. If it crashes, the next
    loader gets what it had not answered; one by one, if any of several models may be the cause.
    ``unreadable``: by model, why it could not be read the
    last time, "" if it could; a model is missing until it has been read.

    After any event `advance` says what to do.
    """

    def __init__(self, names: Sequence[str], token: bytes) -> None:
        self.models = {name: ModelVersions(name) for name in names}
        self.unreadable: dict[str, str] = {}
        self._bad_input: dict[str, bool] = {}
        self._token = token
        self._loader: bytes | None = None
        self._process_id = 0
        self._newest = dict.fromkeys(names, 0)  # the last number that was asked for, or came
        self._requested: dict[str, int] = {}  # what is not answered
        self._requested_next: dict[str, int] = {}  # what to ask when that is answered
        self._sent: set[str] = set()  # the models that this loader was asked for
        self._crashes: dict[str, int] = defaultdict(int)
        self._suspects: set[str] = set()  # one of them, which were read together, ended a loader
        self._unwanted: set[str] = set()  # unloaded, though its training run may have versions
        self._reloads: dict[str, list[_Reload]] = {name: [] for name in names}
        for name in names:
            self._prepare(name)

    # What is served

    def served(self) -> Mapping[str, ServedModel]:
        """Every model by name, as interfaces see it."""
        return {name: model.served() for name, model in self.models.items()}

    def wanted(self) -> list[ModelVersions]:
        """Return the models to serve: all but those that were unloaded last, not reloaded."""
        return [model for name, model in self.models.items() if name not in self._unwanted]

    def description(self, model: str, version: int | None) -> ModelDescription | None:
        """What would answer a request for that version, or for the newest; None if nothing."""
        found = self.models.get(model)
        if found is None or found.is_unloaded:
            return None
        one = found.newest if version is None else found.versions.get(version)
        return None if one is None else one.description

    # Reading models

    def reload(self, model: str, request_id: int) -> None:
        """Have a model read again. The request ends when workers answer with it, or it failed."""
        self._unwanted.discard(model)
        self._reloads[model].append(_Reload(request_id, self._prepare(model)))

    def prepare_again(self, model: str) -> None:
        """Have a model read again whose file of arrays was removed, unless it is being read."""
        if model not in self._requested and model not in self._unwanted:
            logger.warning("arrays_removed model=%s", model)
            self._prepare(model)

    def unload(self, model: str, reason: str) -> None:
        """Serve a model no longer, until it is reloaded."""
        self._unwanted.add(model)
        self.models[model].unload(reason)

    def loader_joined(self, node: bytes, message: JoinAsLoader) -> bool:
        """A peer says that it is the loader; returns whether it is."""
        if not hmac.compare_digest(message.token, self._token):
            return False
        logger.info("loader_joined process=%d", message.process_id)
        self._loader_gone()
        self._loader, self._process_id = node, message.process_id
        return True

    def is_loader(self, node: bytes) -> bool:
        return node == self._loader

    def loader_ended(self, process_id: int, reason: str) -> ModelPrepared | None:
        """A process has ended. If a model has crashed the loader again, gives the answer for it."""
        if process_id != self._process_id or self._loader is None:
            return None
        if len(self._sent) != 1:
            self._suspects |= self._sent
            self._loader_gone()
            return None
        model = next(iter(self._sent))
        number = self._requested[model]
        self._crashes[model] += 1
        is_last = self._crashes[model] == MAX_CRASHES
        untried = self._requested_next.pop(model, None) if is_last else None
        self._loader_gone()
        if not is_last:
            return None
        if untried is not None:
            self._requested_next[model] = untried
        reason = f"reading it ended the model loader {MAX_CRASHES} times; the last time {reason}"
        return ModelPrepared(model, number, "", reason, number)

    def prepared(self, message: ModelPrepared) -> None:
        """The loader has read a version of one of these models, or could not."""
        name, reason = message.model, message.reason
        model = self.models[name]
        self._crashes[name] = 0
        self._suspects.discard(name)
        self._newest[name] = max(self._newest[name], message.version)
        self.unreadable[name] = reason
        self._bad_input[name] = message.is_bad_input
        if self._requested.get(name) == message.requested:
            del self._requested[name]
            self._sent.discard(name)
            if name in self._requested_next:
                self._requested[name] = self._requested_next.pop(name)
        if name in self._unwanted:
            logger.info("version_ignored model=%s reason=unloaded", name)
        else:
            reason = reason or _take_in(model, message)
        for reload in self._reloads[name]:
            # A version that came unasked, or was read before the reload, is not its version.
            if reload.place is None and reload.requested <= message.requested:
                reload.place, reload.version = model.came, message.version
                if reason:
                    reload.result = Result(Status.BAD_INPUT, reason=reason)
        if reason and name not in self._unwanted:
            logger.warning("prepare_failed model=%s reason=%s", name, reason)
            model.reason = reason

    def advance(self) -> list[PoolCommand]:
        """Ask the loader, and end the reloads whose version is settled."""
        commands: list[PoolCommand] = []
        if self._loader is not None:
            for name, number in self._requested.items():
                is_alone = not self._sent or self._suspects.isdisjoint({name, *self._sent})
                if name not in self._sent and is_alone:
                    self._sent.add(name)
                    commands.append(SendToNode(self._loader, PrepareModel(name, number)))
        for name, reloads in self._reloads.items():
            model = self.models[name]
            for reload in [*reloads]:
                result = reload.result
                if result is None and reload.place is not None and model.done >= reload.place:
                    result = _rolled_out(reload.version, model.served())
                if result is not None:
                    reloads.remove(reload)
                    commands.append(EndRequest(reload.request_id, result))
        return commands

    def failures(self, has_workers: bool) -> list[ModelLoadError]:
        """Why models cannot be answered for: they could not be read, or no worker could load them.

        Models that may still come are not among them.
        """
        failures = []
        for name, reason in self.unreadable.items():
            model = self.models[name]
            if not model.is_ready and (reason or (has_workers and model.done == model.came)):
                failures.append(ModelLoadError(f"model {name}: {reason or model.reason}"))
                if self._bad_input[name]:
                    failures[-1].exit_code = BadInputError.exit_code
        return failures

    def _prepare(self, model: str) -> int:
        """Have the model's next version read; gives its number.

        A version of a training run has the run's number instead.
        """
        number = self._newest[model] = self._newest[model] + 1
        (self._requested_next if model in self._sent else self._requested)[model] = number
        return number

    def _loader_gone(self) -> None:
        self._loader = None
        self._requested |= self._requested_next
        self._requested_next.clear()
        self._sent.clear()


def _take_in(model: ModelVersions, message: ModelPrepared) -> str:
    """Give the model its new version; returns why that is impossible, "" if it is not."""
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


def _rolled_out(version: int, served: ServedModel) -> Result:
    newest = served.description.version if served.description else None
    if version == newest or version in served.versions:
        return Result(Status.OK, version=version)
    if newest is not None and not served.reason:  # a later one took its place
        return Result(Status.OK, version=newest)
    return Result(Status.FAILED, reason=served.reason)
