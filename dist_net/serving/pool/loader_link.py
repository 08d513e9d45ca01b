"""What the gateway knows of its model loader: which peer it is, and what was asked of it. Pure."""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Callable

from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import Enlisted, EnlistLoader, ModelPrepared, PrepareModel

MOST_LOSSES = 2
"""A model at which the loader's process has ended so often, one time after the other, is not tried
again unasked: it would end the next one, too."""

Send = Callable[[bytes, Message], bool]


class LoaderLink:
    """The loader that was given ``token``; it names files, which workers may fetch, so nobody else
    must pass for it.

    What it is asked while there is none, the next one is asked; so it is what one had not answered
    when it ended. ``unreadable`` says why a model could not be read the last time, "" if it could;
    a model is not in it before. ``unloaded``: models of which no version is wanted, though a
    training run that is followed goes on having them.
    """

    def __init__(self, token: bytes, send: Send) -> None:
        self.unreadable: dict[str, str] = {}
        self.unloaded: set[str] = set()
        self._token = token
        self._send = send
        self._node: bytes | None = None
        self._process_id = 0
        self._newest: dict[str, int] = defaultdict(int)
        self._unanswered: dict[str, int] = {}  # in the order in which it reads them
        self._losses: dict[str, int] = defaultdict(int)

    def enlisted(self, node: bytes, message: EnlistLoader) -> bool:
        """A peer says that it is the loader; whether it is."""
        if not hmac.compare_digest(message.token, self._token):
            return False
        self._node, self._process_id = node, message.process_id
        self._send(node, Enlisted(0, 0.0, 0.0))
        for model, number in self._unanswered.items():
            self._send(node, PrepareModel(model, number))
        return True

    def prepare(self, model: str) -> int | None:
        """Asks for the model's next version; gives the number of this, or None: it takes no more.

        The version has this number, too, unless it is a training run's.
        """
        number = self._newest[model] + 1
        if self._node is not None and not self._send(self._node, PrepareModel(model, number)):
            return None
        self.unloaded.discard(model)
        self._newest[model] = self._unanswered[model] = number
        return number

    def prepared(self, node: bytes, message: ModelPrepared) -> bool:
        """A version has come, or could not be read; whether it is the loader who says so."""
        if node != self._node:
            return False
        self._losses[message.model] = 0
        self._take_in(message)
        return True

    def ended(self, process_id: int, reason: str) -> ModelPrepared | None:
        """A process has ended; gives what is to be taken for the loader's last answer, if any."""
        if process_id != self._process_id or self._node is None:
            return None
        self._node = None
        if not self._unanswered:
            return None
        model, number = next(iter(self._unanswered.items()))
        self._losses[model] += 1
        if self._losses[model] < MOST_LOSSES:
            return None
        self._losses[model] = 0
        reason = f"reading it ended the model loader {MOST_LOSSES} times; the last time {reason}"
        answer = ModelPrepared(model, number, "", reason, number)
        self._take_in(answer)
        return answer

    def _take_in(self, message: ModelPrepared) -> None:
        model = message.model
        self.unreadable[model] = message.reason
        self._newest[model] = max(self._newest[model], message.version)
        if self._unanswered.get(model, 0) == message.asked:
            self._unanswered.pop(model, None)
