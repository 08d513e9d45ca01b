"""Inputs that end workers, and versions that such inputs end too often: neither runs again."""

import logging
from collections import OrderedDict
from hashlib import blake2b

from dist_net.serving.pool.requests import Payload, Result, Status

logger = logging.getLogger(__name__)

CRASHES_ALONE = 2
"""A payload that was alone with a lost worker this often is taken to be the cause."""
MAX_SUSPECTS = 1024  # the oldest are forgotten first
GUILTY_INPUTS = 3
WITHIN_S = 60.0
"""A version that ``GUILTY_INPUTS`` inputs crashed ``WITHIN_S`` pauses until the first is as old."""


class Quarantine:
    """The payloads that lost workers computed, as digests by version of a model.

    Each has the number of losses that it was alone in since a version last answered it. A payload
    with ``CRASHES_ALONE`` is guilty. It fails from then on; several guilty payloads break their
    version for a while, so that workers remain for other models.
    """

    def __init__(self) -> None:
        self._losses: OrderedDict[tuple[str, int, bytes], int] = OrderedDict()
        self._guilty_s: dict[tuple[str, int], list[float]] = {}  # the last few, by version

    def add(self, model: str, version: int, payload: Payload, is_alone: bool, now: float) -> None:
        """Count the loss of a worker that computed this payload."""
        key = model, version, _digest(payload)
        losses = self._losses[key] = self._losses.get(key, 0) + is_alone
        if len(self._losses) > MAX_SUSPECTS:
            self._losses.popitem(last=False)
        if is_alone and losses == CRASHES_ALONE:
            logger.error("input_quarantined model=%s version=%d", model, version)
            recent = {
                of: times for of, times in self._guilty_s.items() if times[-1] > now - WITHIN_S
            }
            recent[model, version] = [*recent.get((model, version), ()), now][-GUILTY_INPUTS:]
            self._guilty_s = recent

    def is_suspect(self, model: str, version: int, payload: Payload) -> bool:
        """Return whether a worker was lost with it, so that it must run alone."""
        # A digest of 32 MiB takes some 30 ms.
        return bool(self._losses) and (model, version, _digest(payload)) in self._losses

    def clear(self, model: str, version: int, payload: Payload) -> None:
        """Forget a payload that was answered."""
        self._losses.pop((model, version, _digest(payload)), None)

    def refusal(self, model: str, version: int, payload: Payload, now: float) -> Result | None:
        """Return the result of a request that must not run, or None if it may."""
        guilty_s = self._guilty_s.get((model, version), [])
        broken_s = guilty_s[0] + WITHIN_S - now if len(guilty_s) == GUILTY_INPUTS else 0.0
        if broken_s > 0:
            reason = (
                f"version {version} of {model} is paused: {GUILTY_INPUTS} inputs ended the workers "
                f"that computed them, {CRASHES_ALONE} each, within {WITHIN_S:g} s"
            )
            return Result(Status.UNAVAILABLE, version, reason=reason, retry_after_s=broken_s)
        if not self._losses:
            return None
        if self._losses.get((model, version, _digest(payload)), 0) < CRASHES_ALONE:
            return None
        reason = f"this input ended {CRASHES_ALONE} workers that computed it alone"
        return Result(Status.FAILED, version, reason=reason)


def _digest(payload: Payload) -> bytes:
    return blake2b(payload, digest_size=16).digest()
