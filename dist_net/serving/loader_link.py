"""What the gateway knows of its model loader: which peer it is, and what was asked of it. Pure."""

from __future__ import annotations

import hmac
from collections import defaultdict
from collections.abc import Callable

from dist_net.wire.messages import Message
from dist_net.wire.serving_messages import Enlisted, EnlistLoader, Prepare, Prepared

Send = Callable[[bytes, Message], object]


class LoaderLink:
    """The loader that was given ``token``; it names files, which workers may fetch, so nobody else
    must pass for it.

    ``unreadable`` says why a model could not be read the last time, "" if it could; a model is not
    in it before. ``unloaded``: models of which no version is wanted, though a training run that is
    followed goes on having them.
    """

    def __init__(self, token: bytes, send: Send) -> None:
        self.unreadable: dict[str, str] = {}
        self.unloaded: set[str] = set()
        self._token = token
        self._send = send
        self._node: bytes | None = None
        self._newest: dict[str, int] = defaultdict(int)
        self._prepared: dict[str, int] = {}

    @property
    def is_there(self) -> bool:
        """Whether it has said that it is."""
        return self._node is not None

    def prepared_version(self, model: str) -> int:
        """The last version that came; a training run's may be lower than one before."""
        return self._prepared[model]

    def enlisted(self, node: bytes, message: EnlistLoader) -> bool:
        """A peer says that it is the loader; whether it is."""
        if not hmac.compare_digest(message.token, self._token):
            return False
        self._node = node
        self._send(node, Enlisted(0, 0.0, 0.0))
        return True

    def prepare(self, model: str) -> None:
        """Asks for the model's next version."""
        assert self._node is not None
        self.unloaded.discard(model)
        self._newest[model] += 1
        self._send(self._node, Prepare(model, self._newest[model]))

    def prepared(self, node: bytes, message: Prepared) -> bool:
        """A version has come, or could not be read; whether it is the loader who says so."""
        if node != self._node:
            return False
        self.unreadable[message.model] = message.reason
        self._prepared[message.model] = message.version
        self._newest[message.model] = max(self._newest[message.model], message.version)
        return True
