"""The process that trains a served classifier again whenever its labels have changed.

    python -m dist_net.photos.teaching.teacher RUN

    label ──▶ collection ──this process──▶ best.safetensors ──reload──▶ workers

First the model, so that the next answer is right; the report follows when no label has arrived for
a moment. Labels that arrive meanwhile are taken together.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dist_net.data.collection import Collection
from dist_net.errors import DistNetError, SettingError
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_report import write_report
from dist_net.photos.image_run import ImageRun, TrainedImages, write_model
from dist_net.photos.teaching.queue import Queue
from dist_net.processes.entry import READY, entry_point, terminate_after
from dist_net.processes.terminal import plain_console
from dist_net.training.run.local_run import LocalRunSettings, RunHost
from dist_net.training.run.training_progress import TrainingProgress

logger = logging.getLogger("dist_net.photos.teaching.teacher")

POLL_S = 0.02
LOOK_EVERY_S = 0.5
"""Between two looks at the images that clients sent."""
QUIET_S = 2.0
"""Without a label for this long, the report is written."""


class Teacher:
    """Trains the head of the run in ``directory``, which is locked, on the current labels."""

    def __init__(self, directory: RunDirectory, collection: Collection) -> None:
        self._directory, self._collection = directory, collection
        self._queue = Queue(collection)
        self._options = ImageOptions.read(directory.folder)
        if self._options.fine_tune or self._options.base == "none":
            raise SettingError(
                f"{directory.path}: its whole net was trained; expected a run without "
                f"--fine-tune, whose head learns from labels in seconds"
            )
        host = RunHost(directory, LocalRunSettings(1), TrainingProgress(plain_console()))
        self._run = ImageRun(host, self._options)
        self._labels: dict[str, str | None] | None = None
        self._trained: TrainedImages | None = None
        self._is_reported = False

    def learn(self) -> bool:
        """Replace the model if the labels have changed; return whether it was replaced.

        Labels from which no classifier can be trained, such as of one class, are logged.
        """
        labels = self._collection.current_labels()
        if labels == self._labels:
            return False
        began_s = time.monotonic()
        self._labels = labels
        if self._trained is not None:
            self._trained.images.close()
        self._trained, self._is_reported = None, False
        try:
            self._trained = self._run.train()
            write_model(self._directory, self._options, self._trained)
        except DistNetError as error:
            logger.warning("not_trained labels=%d error=%s", len(labels), error)
            return False
        took_s = time.monotonic() - began_s
        logger.info("trained labels=%d seconds=%.2f", len(labels), took_s)
        return True

    def order(self, *, is_new: bool) -> None:
        """Write the queue of images to label if the model, or an image in it, is new."""
        if self._trained is None:
            return
        try:
            if self._queue.see(self._trained, self._run.extractor) or is_new:
                self._queue.write(self._trained, self._options)
        except (DistNetError, OSError) as error:
            logger.warning("not_queued error=%s", error)

    def report(self) -> None:
        """Write the report of the newest model, unless it is written."""
        if self._trained is not None and not self._is_reported:
            self._is_reported = True
            try:
                write_report(self._directory, self._options, self._trained)
            except DistNetError as error:
                logger.warning("not_reported error=%s", error)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--parent", type=int, required=True)


def run(arguments: argparse.Namespace) -> int:
    """Learn until the parent ends."""
    terminate_after(arguments.parent)
    directory = RunDirectory.open(arguments.run)
    with directory.locked(), Collection(directory.collection) as collection:
        teacher = Teacher(directory, collection)
        is_new = teacher.learn()
        print(READY, flush=True)
        changes, looked_s = collection.changes(), -math.inf
        while True:
            is_new |= teacher.learn()
            changed_s = time.monotonic()
            while changes == (changes := collection.changes()):
                now_s = time.monotonic()
                if is_new or now_s > looked_s + LOOK_EVERY_S:
                    teacher.order(is_new=is_new)
                    is_new, looked_s = False, now_s
                if now_s > changed_s + QUIET_S:
                    teacher.report()
                time.sleep(POLL_S)


def main(words: Sequence[str] | None = None) -> int:
    return entry_point(add_arguments, run, words)


if __name__ == "__main__":
    sys.exit(main())
