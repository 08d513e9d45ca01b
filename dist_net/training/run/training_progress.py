"""The progress of a training run on the terminal, and its warnings."""

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn

from dist_net.ground.command_line import command_line
from dist_net.ground.printable import counted
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.launcher import RunningChild
from dist_net.processes.terminal import BAR_AND_TIME, BAR_CELLS, bar_on, fitting
from dist_net.training.run.evaluation import Evaluation
from dist_net.training.run.timeline_files import TimelineFile
from dist_net.training.server.consistency import Consistency

WARNINGS = {
    "checkpoint_error": "checkpoints can be written again",
    "journal_error": "the journal can be written again",
    "metrics_error": "metrics can be written again",
    "loss_warning": None,
    "worker_warning": None,
    "kernel_warning": None,
    "majority_warning": "the run continues",
    "copy_warning": "every standby keeps up",
}
"""Keys of a report with warnings, and the message when one is over (None: once per run)."""

Publish = Callable[[dict[str, Any]], None]
VARYING = re.compile(r"with \S+ on (an unknown host|\S+)|\d[\d.,]*(e[-+]\d+)?")
"""What may change in a warning from one report to the next: the slowest worker, and numbers."""

QUIET_S, QUIET_SHARE = 15.0, 0.05
"""Without a terminal, the time until a line of progress, and its least share of the time so far."""


def exchange_facts(report: dict[str, Any]) -> str:
    """Return what the exchanges of a run cost: staleness, or the time that workers wait."""
    if report["consistency"] == Consistency.ASYNC:
        return f"staleness {report['staleness_mean']:.1f}, at most {report['staleness_max']:,}"
    return (
        f"{report['samples_per_update']:,.0f} samples per round, workers wait "
        f"{report['waiting_share']:.0%} of the time"
    )


def time_left(samples: float, samples_per_s: float) -> str:
    """Return the time for the samples, such as 0:02:10; "-:--:--" if the speed is unknown."""
    if not samples_per_s:
        return "-:--:--"
    return str(timedelta(seconds=math.ceil(max(0.0, samples) / samples_per_s)))


class TrainingProgress:
    """A context manager that shows a training run: a line per evaluation, and a live line.

    The live line needs a terminal; elsewhere it is printed after ``QUIET_S`` without another line,
    later after ``QUIET_SHARE`` of the time so far. ``joining`` returns the command that joins the
    server at an address; None if workers may not join. ``publish`` receives each report, ``follow``
    the directory of each part of the run. Set ``wants_end`` to end the run early.
    """

    wants_end = False

    def __init__(
        self,
        console: Console,
        joining: Callable[[str], str] | None = None,
        publish: Publish | None = None,
        follow: Callable[[RunDirectory], None] = lambda _: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.console = console
        self._now = now
        self._began_s = self._printed_s = now()
        self._samples_per_epoch = math.nan  # until the first report
        self._joining = joining
        self._publish = publish
        self._follow = follow
        self._timeline: TimelineFile | None = None
        self._progress = bar_on(
            console,
            TextColumn("epoch {task.fields[epoch]}", markup=False),
            BarColumn(BAR_CELLS),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[details]}", markup=False),
        )
        self._task = self._progress.add_task("", epoch="-", left="", details="", total=None)
        self._learnt: list[str] = []
        self._shown: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begins(self, directory: RunDirectory) -> None:
        """Record what is shown from now on in the directory's timeline."""
        self._timeline = TimelineFile(directory)
        self._follow(directory)

    def started(self, addresses: Sequence[str]) -> None:
        """Print the commands that join the run, if workers may join."""
        if self._joining is not None:
            for address in addresses:
                self._line(f"workers may join: {self._joining(address)}", "dim")

    def opened(self, lines: Sequence[str]) -> None:
        """Print the commands for another host, which are indented, and how to revoke them."""
        for line in lines:
            self._line(line, "" if line.startswith(" ") else "dim")

    def answers(self, address: str, keys: Path) -> None:
        """Print the command that shows the server's state; it needs these keys."""
        self._line(f"its state: {command_line('status', address, '--keys', keys)}", "dim")

    def loads(self, children: Sequence[RunningChild]) -> None:
        for child in children:
            text = f"{child.name} is loading {child.is_loading}"
            if child.is_loading and text not in self._shown:
                self._shown.add(text)
                self._line(text, "dim")

    def progressed(self, report: dict[str, Any]) -> None:
        if self._publish is not None:
            self._publish(report)
        if self._timeline is not None:
            self._timeline.reported(report)
        if report["records"]:
            last = report["records"][-1]
            accuracy = last["accuracy"]
            self._learnt = [] if accuracy is None else [f"accuracy {accuracy:.1%}"]
            self._learnt.append(f"loss {last['loss']:.3f}")
        samples, total = report["samples"] + report["samples_under_way"], report["samples_total"]
        self._samples_per_epoch = total / report["epochs"]
        epoch = f"{samples / self._samples_per_epoch:.1f}/{report['epochs']}"
        left = time_left(total - samples, report["samples_per_s"])
        details = [
            f"{report['samples_per_s']:,.0f} samples/s",
            *self._learnt,
            counted(report["worker_count"], "worker"),
            exchange_facts(report),
        ]
        self._progress.update(
            self._task,
            completed=samples,
            total=total,
            epoch=epoch,
            left=left,
            details=fitting(details, self.console.width - len(f"epoch {epoch}") - BAR_AND_TIME),
        )
        quiet_s = max(QUIET_S, QUIET_SHARE * (self._now() - self._began_s))
        if not self.console.is_terminal and self._now() - self._printed_s >= quiet_s:
            self._line(f"epoch {epoch}, {left} left: {', '.join(details)}")

    def evaluated(self, samples: int, evaluation: Evaluation) -> None:
        self._line(f"epoch {samples / self._samples_per_epoch:5.1f}: {evaluation}")

    def warned(self, text: str) -> None:
        if self._timeline is not None:
            self._timeline.notified(text)
        self.members_changed(text)

    def members_changed(self, text: str) -> None:
        """Print an event of members, which is in the reports, too."""
        self._line(text, "yellow")

    def _line(self, text: str, style: str = "") -> None:
        self._printed_s = self._now()
        self.console.print(text, style=style)


class Silence:
    """Notify of a server's silence once, and of its end. No I/O."""

    def __init__(self, notify: Callable[[str], None], end: str) -> None:
        self._notify = notify
        self._end = end
        self._is_silent = False

    def begins(self, text: str) -> None:
        if not self._is_silent:
            self._is_silent = True
            self._notify(text)

    def ends(self) -> None:
        if self._is_silent:
            self._is_silent = False
            self._notify(self._end)


class RunNotices:
    """Pass the warnings in a run's reports to ``notify``, events to ``of_members``. No I/O.

    Each warning is passed once, until it is over; each event once, those of a host in one line.
    """

    def __init__(
        self, notify: Callable[[str], None], of_members: Callable[[str], None] | None = None
    ) -> None:
        self._notify = notify
        self._of_members = of_members or notify
        self._open: dict[str, str] = {}
        self._last: dict[str, str] = {}
        self._next_event = 0, 0  # of a term

    def notify_changes(self, report: dict[str, Any]) -> None:
        for kind, when_over in WARNINGS.items():
            warning = report[kind]
            before = self._open.pop(kind, None) if when_over else self._last.get(kind)
            if warning is not None:
                self._open[kind] = self._last[kind] = warning
                if before is None or VARYING.sub("", warning) != VARYING.sub("", before):
                    self._notify(warning)
            elif before is not None and when_over is not None:
                self._notify(when_over)

        self._notify_events(report["term"], report["events"])

    def _notify_events(self, term: int, events: Sequence[dict[str, Any]]) -> None:
        known, following = self._next_event
        new = [each for each in events if term != known or each["number"] >= following]
        if events:
            self._next_event = term, events[-1]["number"] + 1
        processes: Counter[tuple[str, str]] = Counter()
        for each in new:
            what = f"{each['what']}: {each['reason']}" if each["reason"] else each["what"]
            processes[each["host"], what] += each["processes"]
        for (host, what), count in processes.items():
            self._of_members(f"{host}: {counted(count, 'worker')} {what}")

    @property
    def warnings(self) -> list[str]:
        return list(self._last.values())
