"""An inbox: each image that arrives in a folder is classified, once.

    file ──complete──▶ Gateway.infer ──▶ a link in a folder of its class, a line of answers.jsonl

A file is complete when two looks find the same size and time. It is done when its line is on the
disk; a file that is overwritten is another one. The folder is listed, not watched: that works on
every file system, and is the same after a restart.
"""

import asyncio
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dist_net.errors import SettingError
from dist_net.ground.files import read_regular_file
from dist_net.images.labels import is_unknown, top_predictions
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.pool.requests import InferenceRequest, Status
from dist_net.wire.serving_messages import MAX_REQUEST_BYTES

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 0.5
ANSWERS = "answers.jsonl"
UNKNOWN = "unknown"
IS_LASTING = Status.BAD_INPUT, Status.FAILED
"""Another try would end likewise."""


class ArrivedFile(NamedTuple):
    name: str
    bytes: int
    modified_ns: int


@dataclass
class Inbox:
    """Classifies the images of ``folder``, and links each in ``sort_into``/CLASS unless None."""

    gateway: Gateway
    folder: Path
    sort_into: Path | None = None
    _done: set[ArrivedFile] = field(default_factory=set)

    def __post_init__(self) -> None:
        """Raise SettingError unless answers can be written beside the images."""
        try:
            with (self.folder / ANSWERS).open("a+b") as file:
                file.seek(0)
                content = file.read()
                whole = content[: content.rfind(b"\n") + 1]
                file.truncate(len(whole))  # a line that a crash has torn is written again
        except OSError as error:
            raise SettingError(
                f"--inbox {self.folder}: {error.strerror}; expected a folder in which {ANSWERS} "
                f"can be written"
            ) from error
        for line in whole.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                answer = json.loads(line)
                self._done.add(ArrivedFile(*(answer[name] for name in ArrivedFile._fields)))

    async def watch(self) -> None:
        """Classify what arrives, until cancelled."""
        before: set[ArrivedFile] = set()
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            try:
                found = await asyncio.to_thread(self._files)
            except OSError as error:
                logger.warning("not_listed inbox=%s error=%s", self.folder, error)
                continue
            self._done &= found
            complete = sorted((found & before) - self._done)
            before = found
            for start in range(0, len(complete), self.gateway.max_batch_size):
                several = complete[start : start + self.gateway.max_batch_size]
                answers = await asyncio.gather(*map(self._answer, several))
                written = [each for each in answers if each is not None]
                try:
                    await asyncio.to_thread(self._write, written)
                except OSError as error:
                    logger.warning("answers_not_written inbox=%s error=%s", self.folder, error)
                    break
                self._done |= {file for file, _ in written}

    def _files(self) -> set[ArrivedFile]:
        found = set()
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name != ANSWERS and entry.is_file():
                    with suppress(OSError):  # it was removed meanwhile
                        status = entry.stat()
                        found.add(ArrivedFile(entry.name, status.st_size, status.st_mtime_ns))
        return found

    async def _answer(self, file: ArrivedFile) -> tuple[ArrivedFile, dict[str, Any]] | None:
        """Return the answer to a file; None for one that is gone, changed or to be tried again."""
        described = (each.description for each in self.gateway.models().values())
        models = [each for each in described if each and each.takes_images and each.has_classes]
        if not models:
            return None
        try:
            content = await asyncio.to_thread(
                read_regular_file, self.folder / file.name, MAX_REQUEST_BYTES
            )
        except OSError:
            return None
        except ValueError as error:
            return file, {"error": str(error)}
        if len(content) != file.bytes:
            return None
        request = InferenceRequest(models[0].name, content, is_image=True, client="inbox")
        result = await self.gateway.infer(request)
        if result.status in IS_LASTING:
            return file, {"error": result.reason}
        if result.status != Status.OK:
            return None
        best = top_predictions(np.frombuffer(result.payload, "<f4"), result.labels, 1)
        answer = {"model": models[0].name, "version": result.version, **asdict(best[0])}
        return file, answer | {"unknown": is_unknown(best, result.unknown_below)}

    def _write(self, answers: list[tuple[ArrivedFile, dict[str, Any]]]) -> None:
        """Link the files, then add the lines: a crash in between repeats the links."""
        for file, answer in answers if self.sort_into is not None else ():
            try:
                self._link(file.name, UNKNOWN if answer.get("unknown") else answer.get("label"))
            except OSError as error:
                logger.warning("not_linked inbox=%s error=%s", self.folder, error)
        with (self.folder / ANSWERS).open("ab") as lines:
            for file, answer in answers:
                lines.write(json.dumps(file._asdict() | answer).encode() + b"\n")
            lines.flush()
            os.fsync(lines.fileno())

    def _link(self, name: str, label: str | None) -> None:
        """Link a file in the folder of its class, and there only; None: no class.

        A link that cannot be made is logged: the other files must not wait for it.
        """
        assert self.sort_into is not None
        for old in self.sort_into.glob("*/"):
            if (old / name).is_symlink():
                (old / name).unlink()
        if label is not None:
            folder = self.sort_into / (label.replace("/", "_").lstrip(".") or "_")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to((self.folder / name).resolve())
