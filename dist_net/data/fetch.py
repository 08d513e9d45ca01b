"""Fetching published files: sources tried in order, and events that show it as it happens.

Knows no dataset and draws nothing: ``dist_net.cluster.terminal`` renders the events.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dist_net.data.cache import Cache, PublishedFile
from dist_net.errors import CacheError, NotFetchedError, SourceError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceTried:
    """The next source of ``dataset`` is being asked."""

    dataset: str
    source: str


@dataclass(frozen=True)
class SourceFailed:
    """It could not deliver; the next one is tried."""

    source: str
    reason: str


@dataclass(frozen=True)
class SourceDelivered:
    """It had all that was missing: the dataset is complete."""

    source: str


@dataclass(frozen=True)
class CommandStarted:
    """The source runs a program of the system; it may take a while."""

    command: str


@dataclass(frozen=True)
class BytesReceived:
    """``received`` of ``total`` bytes of ``file`` are here; total None: the sender did not say."""

    file: str
    received: int
    total: int | None


FetchEvent = SourceTried | SourceFailed | SourceDelivered | CommandStarted | BytesReceived
Progress = Callable[[FetchEvent], None]


class Source(Protocol):
    """One way to get published files."""

    @property
    def name(self) -> str:
        """What a person is shown, such as ``download from https://…``."""
        ...

    def deliver(self, files: Sequence[PublishedFile], cache: Cache, progress: Progress) -> None:
        """Store every one of ``files`` in ``cache``, or raise a ``SourceError``."""
        ...


class CacheDirectory:
    """The source that is asked first: the files are there already, verified."""

    def __init__(self, cache: Cache) -> None:
        self.name = f"cache directory {cache.directory}"

    def deliver(self, files: Sequence[PublishedFile], cache: Cache, progress: Progress) -> None:
        """Check every file; raise ``ContentError`` for the first that is missing or wrong."""
        for file in files:
            cache.require(file)


def fetch(
    dataset: str,
    files: Sequence[PublishedFile],
    sources: Sequence[Source],
    cache: Cache,
    progress: Progress,
    otherwise: str,
) -> None:
    """Make sure that ``cache`` holds all ``files``, verified; ask ``sources`` for those it lacks.

    They are asked in order, each for what is still missing. Raises ``NotFetchedError`` when none
    can deliver (it lists every source with its reason, and ``otherwise``: what else can be done),
    and ``CacheError`` when the cache directory cannot be used.
    """
    failures = []
    for source in (CacheDirectory(cache), *sources):
        progress(SourceTried(dataset, source.name))
        try:
            source.deliver([file for file in files if not cache.holds(file)], cache, progress)
        except SourceError as error:
            logger.info("source failed dataset=%s source=%r: %s", dataset, source.name, error)
            failures.append(f"  {source.name}: {error}")
            progress(SourceFailed(source.name, str(error)))
        except OSError as error:
            raise CacheError(
                f"{dataset} cannot be stored in {cache.directory}: {error}: "
                "expected a directory that can be written, with room; give another one"
            ) from error
        else:
            progress(SourceDelivered(source.name))
            return
    raise NotFetchedError(
        "\n".join(
            (
                f"{dataset} could not be fetched; tried:",
                *failures,
                f"connect to a network, or put into {cache.directory}, decompressed,",
                *(f"  {file.name}, {file.sizes} bytes" for file in files),
                otherwise,
            )
        )
    )
