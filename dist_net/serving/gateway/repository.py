"""A directory of models, NAME/VERSION/…: the newest version of each name is served.

The directory is listed every second. A version is loaded once it has not changed for that time; one
that could not be loaded is tried again once it changes, and an older one is served meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from dist_net.errors import DistNetError, SettingError
from dist_net.nets.sources.named_source import NamedSource, parse_named_source
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.requests import Status

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 1.0
LABELS = "labels.txt"


class FoundVersion(NamedTuple):
    """A directory NAME/NUMBER at a moment: ``files`` are names, sizes and times, sorted."""

    number: int
    path: Path
    files: tuple[tuple[str, int, int], ...]

    def source(self, name: str) -> NamedSource:
        """Return its only file besides ``labels.txt``, its .onnx file, or the run that it is."""
        names = [each for each, _, _ in self.files if each != LABELS]
        names = [each for each in names if each.endswith(".onnx")] or names
        path = self.path / names[0] if len(names) == 1 else self.path
        labels = self.path / LABELS if len(names) < len(self.files) else None
        return parse_named_source(NamedSource(name, str(path), labels=labels).text)


@dataclass
class ModelRepository:
    """Loads and unloads the models of a directory. ``set_source`` decides what a reload reads."""

    gateway: Gateway
    directory: Path
    set_source: Callable[[NamedSource], None]
    _served: dict[str, FoundVersion] = field(default_factory=dict)
    _found: set[FoundVersion] = field(default_factory=set)
    _failed: set[FoundVersion] = field(default_factory=set)

    def __post_init__(self) -> None:
        if not self.directory.is_dir():
            raise SettingError(f"--repository {self.directory}: expected a directory")
        self._others = {*self.gateway.models()}

    async def watch(self) -> None:
        """Serve what the directory has, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Load what has not changed since the last look; unload the names that are gone."""
        try:
            found = await asyncio.to_thread(self._versions)
        except OSError as error:
            logger.warning("not_listed repository=%s error=%s", self.directory, error)
            return
        settled = self._found & (seen := {one for several in found.values() for one in several})
        self._failed &= seen
        self._found = seen
        for name in self._served.keys() - found.keys():
            self.gateway.unload(name)
            del self._served[name]
        loadable = {name: settled.intersection(of) - self._failed for name, of in found.items()}
        await asyncio.gather(*(self._serve(name, max(of)) for name, of in loadable.items() if of))

    async def _serve(self, name: str, newest: FoundVersion) -> None:
        if newest == (served := self._served.get(name)):
            return
        reason = "another model has this name"
        if name not in self._others:
            try:
                self.set_source(newest.source(name))
                if name not in self.gateway.models():
                    self.gateway.add(name)
                result = await self.gateway.reload(name)
                reason = "" if result.status is Status.OK else result.reason
            except DistNetError as error:
                reason = str(error)
        if not reason:
            logger.info("loaded model=%s path=%s version=%d", name, newest.path, result.version)
            self._served[name] = newest
            return
        logger.warning("not_loaded model=%s path=%s reason=%s", name, newest.path, reason)
        self._failed.add(newest)
        if served is not None:
            self.set_source(served.source(name))

    def _versions(self) -> dict[str, list[FoundVersion]]:
        """Return the versions of each name. Raise OSError if the directory cannot be listed."""
        found: dict[str, list[FoundVersion]] = {}
        for model in self.directory.resolve().iterdir():
            if model.is_dir() and not model.name.startswith("."):
                found[model.name] = []
                with suppress(OSError):  # it is gone, or closed to this process
                    found[model.name] += [
                        FoundVersion(int(each.name), each, _files(each))
                        for each in model.iterdir()
                        if each.name.isdecimal() and each.is_dir()
                    ]
        return found


def _files(directory: Path) -> tuple[tuple[str, int, int], ...]:
    found = []
    with suppress(OSError):
        for each in sorted(directory.iterdir()):
            if not each.name.startswith("."):
                status = each.stat()
                found.append((each.name, status.st_size, status.st_mtime_ns))
    return tuple(found)
