"""The process that trains a served classifier again whenever its labels have changed.

    python -m dist_net.photos.teaching.teacher RUN

    label ──▶ collection ──this process──▶ best.safetensors ──reload──▶ workers

First an interim head of all images, so that the next answer is right; the heads of the folds and
the report follow when no label has arrived for a moment. Labels that arrive meanwhile end this
work, and are taken together.
"""

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from enum import IntEnum
from pathlib import Path

from dist_net.data.collection import Collection
from dist_net.errors import DistNetError
from dist_net.nets.run_directory import RunDirectory
from dist_net.photos.head import INTERRUPTION
from dist_net.photos.image_options import ImageOptions
from dist_net.photos.image_report import write_report
from dist_net.photos.image_run import (
    ImageRun,
    TrainedImages,
    holds_model,
    write_model,
    write_weights,
)
from dist_net.photos.teaching.interim_head import InterimHead
from dist_net.photos.teaching.queue import Queue
from dist_net.processes.entry import READY, entry_point, terminate_after
from dist_net.processes.terminal import plain_console
from dist_net.training.run.local_run import LocalRunSettings, RunHost
from dist_net.training.run.training_progress import TrainingProgress

logger = logging.getLogger("dist_net.photos.teaching.teacher")

POLL_S = 0.02
LOOK_EVERY_S = 0.5
"""Between two looks at the images that clients sent."""
NICENESS = 10  # answers have priority over new versions
QUIET_S, REPORT_S = 1.0, 2.0
"""Without a label for this long, the folds are trained, and the report is written."""


class LabelsChangedError(Exception):
    """Another process has changed the log, so that a training or a report is in vain."""


class Stage(IntEnum):
    """What was done for the labels that were read last."""

    INTERIM, TRAINED, REPORTED = range(3)


class Teacher:
    """Trains the head of the run in ``directory``, which is locked, on the current labels."""

    def __init__(self, directory: RunDirectory, collection: Collection) -> None:
        self._directory, self._collection = directory, collection
        self._queue = Queue(collection)
        self._options = ImageOptions.read(directory.folder)
        host = RunHost(directory, LocalRunSettings(1), TrainingProgress(plain_console()))
        self._run = ImageRun(host, self._options, is_taught=True)
        self._labels: dict[str, str | None] | None = None
        self._changes, self._stage = 0, Stage.REPORTED
        self._interim: InterimHead | None = None  # of the last training that succeeded
        self._trained: TrainedImages | None = None  # on the labels that were read last

    @property
    def has_news(self) -> bool:
        """Whether another object has changed the log since the labels were read."""
        return self._collection.changes() != self._changes

    def learn(self) -> bool:
        """Replace the model if the labels have changed; return whether it was replaced.

        If it can be, by an interim model, until ``complete`` returns. Labels from which no
        classifier can be trained, such as of one class, are logged.
        """
        self._changes = self._collection.changes()
        labels = self._collection.current_labels()
        if labels == self._labels:
            return False
        self._labels = labels
        if self._trained is not None:
            self._trained.images.close()
        self._trained, self._stage = None, Stage.INTERIM
        with suppress(DistNetError):  # the complete training raises it again
            if self._interim is not None:
                interim = self._interim.train(self._options.read_folder(self._directory))
                if interim is not None:
                    write_weights(self._directory, self._options, interim)
                    logger.info("followed labels=%d", len(labels))
                    return True
        return self._train()

    def complete(self) -> bool:
        """Train the heads of all folds if it is open; return whether the model was replaced.

        Labels that arrive meanwhile end it.
        """
        return self._stage is Stage.INTERIM and self._unless_news(self._train)

    def order(self, *, is_new: bool) -> None:
        """Write the queue of images to label if the model, or an image in it, is new."""
        extractor = self._run.extractor
        if self._trained is None or extractor is None:
            return
        try:
            if self._queue.see(self._trained, extractor) or is_new:
                self._queue.write(self._trained, self._options)
        except (DistNetError, OSError) as error:
            logger.warning("not_queued error=%s", error)

    def report(self) -> None:
        """Write the report of the newest model if it is open. Labels that arrive end it."""
        if self._stage is Stage.TRAINED:
            self._unless_news(self._report)

    def _train(self) -> bool:
        began_s, count = time.monotonic(), len(self._labels or ())
        try:
            self._trained = trained = self._run.train()
            # A restarted pool answers with the version that it loaded, if no label has changed.
            is_new = not holds_model(self._directory, self._options, trained)
            if is_new:
                write_model(self._directory, self._options, trained)
        except DistNetError as error:
            logger.warning("not_trained labels=%d error=%s", count, error)
            self._stage = Stage.REPORTED
            return False
        assert self._run.extractor is not None
        self._interim, self._stage = InterimHead(trained, self._run.extractor), Stage.TRAINED
        logger.info("trained labels=%d seconds=%.2f", count, time.monotonic() - began_s)
        return is_new

    def _report(self) -> bool:
        assert self._trained is not None
        try:
            write_report(self._directory, self._options, self._trained)
        except DistNetError as error:
            logger.warning("not_reported error=%s", error)
        self._stage = Stage.REPORTED
        return True

    def _unless_news(self, work: Callable[[], bool]) -> bool:
        """Return the result of ``work``; False if labels arrived, which end it."""
        token = INTERRUPTION.set(self._require_no_news)
        try:
            return work()
        except LabelsChangedError:
            return False
        finally:
            INTERRUPTION.reset(token)

    def _require_no_news(self) -> None:
        if self.has_news:
            raise LabelsChangedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--parent", type=int, required=True)


def run(arguments: argparse.Namespace) -> int:
    """Learn until the parent ends."""
    terminate_after(arguments.parent)
    os.nice(NICENESS)
    directory = RunDirectory.open(arguments.run)
    with directory.locked(), Collection(directory.collection) as collection:
        teacher = Teacher(directory, collection)
        is_new = teacher.learn()
        print(READY, flush=True)
        looked_s = -math.inf
        while True:
            is_new |= teacher.learn()
            learned_s = time.monotonic()
            while not teacher.has_news:
                quiet_s = time.monotonic() - learned_s
                if quiet_s > QUIET_S:
                    is_new |= teacher.complete()
                if is_new or time.monotonic() > looked_s + LOOK_EVERY_S:
                    teacher.order(is_new=is_new)
                    is_new, looked_s = False, time.monotonic()
                if quiet_s > REPORT_S:
                    teacher.report()
                time.sleep(POLL_S)


def main(words: Sequence[str] | None = None) -> int:
    return entry_point(add_arguments, run, words)


if __name__ == "__main__":
    sys.exit(main())
