"""Keeps the images that clients send for people to label, within a number of bytes.

answer ──▶ Collector ──▶ RUN/collection/unlabelled/SHA256-MARGIN ──▶ queue of the teacher
"""

import asyncio
import hashlib
import logging
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from dist_net.data.collection import UnlabelledImage, unlabelled_images
from dist_net.ground.files import replacing
from dist_net.serving.pool.requests import InferenceRequest, Result

logger = logging.getLogger(__name__)

MAX_BYTES = 1 << 30
KEPT_SHARE = 0.9
"""Of ``MAX_BYTES``, after an eviction."""
MAX_WAITING_BYTES = 64 << 20
"""Of images that are not written yet; more are not kept."""


class Collector:
    """An observer of answers, of the models with ``collections``, the directory of each.

    Images are written by a thread: nobody waits for it, and a failure is logged.
    """

    def __init__(self, collections: Mapping[str, Path], max_bytes: int = MAX_BYTES) -> None:
        self._kept = {name: KeptImages(path, max_bytes) for name, path in collections.items()}
        self._waiting_bytes = 0
        self._thread = ThreadPoolExecutor(1, "dist-net-collector")

    def __call__(self, request: InferenceRequest, result: Result) -> None:
        size, kept = len(request.payload), self._kept.get(request.model)
        has_room = self._waiting_bytes + size <= MAX_WAITING_BYTES
        if kept is None or request.is_private or not has_room:
            return
        self._waiting_bytes += size
        *_, second, first = np.sort(np.frombuffer(result.payload, "<f4"))
        margin = round(1000 * float(first - second))
        loop, content = asyncio.get_running_loop(), bytes(request.payload)
        stored = loop.run_in_executor(self._thread, kept.store, content, margin)
        stored.add_done_callback(partial(self._ended, size))

    def close(self) -> None:
        self._thread.shutdown()

    def _ended(self, size_bytes: int, stored: asyncio.Future[None]) -> None:
        self._waiting_bytes -= size_bytes
        if not stored.cancelled() and (error := stored.exception()) is not None:
            logger.warning("not_collected error=%s", error)


class KeptImages:
    """The images in ``unlabelled/`` of one collection; not thread-safe. Its methods raise OSError.

    Of the older half, the most certain image is evicted first.
    """

    def __init__(self, collection: Path, max_bytes: int) -> None:
        self._labelled, self._unlabelled = collection / "images", collection / "unlabelled"
        self._max_bytes = max_bytes
        self._bytes_of: dict[str, int] | None = None  # by digest; None until they are listed

    def store(self, content: bytes, margin: int) -> None:
        """Write an image unless it is stored already."""
        digest = hashlib.sha256(content).hexdigest()
        if self._bytes_of is None:
            self._unlabelled.mkdir(parents=True, exist_ok=True)
            self._bytes_of = {each.digest: each.bytes for each in self._listed()}
        if digest in self._bytes_of or (self._labelled / digest).exists():
            return
        with replacing(self._unlabelled / f"{digest}-{margin}") as partial_file:
            partial_file.write_bytes(content)
        self._bytes_of[digest] = len(content)
        if sum(self._bytes_of.values()) > self._max_bytes:
            self._evict()

    def _listed(self) -> list[UnlabelledImage]:
        return unlabelled_images(self._unlabelled)

    def _evict(self) -> None:
        images = self._listed()
        older = sorted(images[: len(images) // 2 + 1], key=lambda each: each.margin)
        excess = sum(each.bytes for each in images) - KEPT_SHARE * self._max_bytes
        while older and excess > 0:
            image = older.pop()
            image.path.unlink(missing_ok=True)
            excess -= image.bytes
        self._bytes_of = {each.digest: each.bytes for each in self._listed()}
