"""What has ended workers: payloads that are not tried again. Pure."""

from __future__ import annotations

from collections import OrderedDict
from hashlib import blake2b

from dist_net.serving.pool.requests import Payload

MOST = 1024
"""Digests that are remembered; the oldest ones are forgotten first."""


class Quarantine:
    """Remembers payloads by version of a model, and as digests only."""

    def __init__(self) -> None:
        self._digests: OrderedDict[tuple[str, int, bytes], None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._digests)

    def add(self, model: str, version: int, payload: Payload) -> None:
        """Remember it."""
        self._digests[model, version, _digest(payload)] = None
        if len(self._digests) > MOST:
            self._digests.popitem(last=False)

    def holds(self, model: str, version: int, payload: Payload) -> bool:
        """Whether it was remembered; nothing is computed while there are none."""
        return bool(self._digests) and (model, version, _digest(payload)) in self._digests


def _digest(payload: Payload) -> bytes:
    return blake2b(payload, digest_size=16).digest()
