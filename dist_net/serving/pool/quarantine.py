"""Inputs that end workers, and versions that such inputs end too often: neither runs again."""

import logging
from collections import OrderedDict

from dist_net.serving.pool.requests import InferenceRequest, Result, Status

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

    def add(self, request: InferenceRequest, version: int, is_alone: bool, now: float) -> None:
        """Count the death of a worker that computed this request."""
        model, key = request.model, (request.model, version, request.digest)
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

    def is_suspect(self, request: InferenceRequest, version: int) -> bool:
        """Return whether a worker died of it, or of its batch, so that it must run alone."""
        return self._deaths(request, version) is not None

    def clear(self, request: InferenceRequest, version: int) -> None:
        self._losses.pop((request.model, version, request.digest), None)

    def refusal(self, request: InferenceRequest, version: int, now: float) -> Result | None:
        """Return the result of a request that must not run, or None if it may."""
        model = request.model
        guilty_s = self._guilty_s.get((model, version), [])
        broken_s = guilty_s[0] + WITHIN_S - now if len(guilty_s) == GUILTY_INPUTS else 0.0
        if broken_s > 0:
            reason = (
                f"version {version} of {model} is paused: {GUILTY_INPUTS} inputs ended the workers "
                f"that computed them, {CRASHES_ALONE} each, within {WITHIN_S:g} s"
            )
            return Result(Status.UNAVAILABLE, version, reason=reason, retry_after_s=broken_s)
        if (self._deaths(request, version) or 0) < CRASHES_ALONE:
            return None
        reason = f"this input ended {CRASHES_ALONE} workers that computed it alone"
        return Result(Status.FAILED, version, reason=reason)

    def _deaths(self, request: InferenceRequest, version: int) -> int | None:
        if not self._losses:  # a digest of 32 MiB takes some 30 ms
            return None
        return self._losses.get((request.model, version, request.digest))
