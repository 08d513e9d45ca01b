"""What people see in a terminal: the console, and how far fetching or training is."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from dist_net.cluster.child import RunningChild
from dist_net.cluster.command_line import command_line
from dist_net.cluster.printable import printable
from dist_net.data.fetch import (
    BytesReceived,
    CommandStarted,
    FetchEvent,
    SourceDelivered,
    SourceFailed,
    SourceTried,
)
from dist_net.training.evaluation import Evaluation

BAR_CELLS = 12
BAR_AND_TIME = BAR_CELLS + len(" ") + len(" -:--:--") + len(" ")
ANNOUNCED_AFTER_S = 1.0


@contextmanager
def announced(console: Console, what: str) -> Iterator[None]:
    """A context whose activity is printed if it takes longer than a moment."""
    timer = threading.Timer(ANNOUNCED_AFTER_S, console.print, [what], {"style": "dim"})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class PrintableConsole(Console):
    """A console that gives the terminal no text that it would obey."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, kept="\n\t"), **options)


def plain_console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """A console on stderr, or on stdout, that reads nothing into the text that it is given.

    If it is ``quiet``, it writes nothing.

    File names, addresses and messages may hold ``[brackets]`` and ``:words:``, which Rich would
    otherwise take for markup and emoji. Long lines are not wrapped, so that commands can be copied.
    """
    return PrintableConsole(
        stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


class FetchProgress:
    """A context in which an instance is called with each event of ``dist_net.data.fetch``.

    Where the console is no terminal only the lines are written.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar: tuple[str, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, event: FetchEvent) -> None:
        match event:
            case SourceTried(dataset, source):
                self._line(f"{dataset}: trying {source}")
            case SourceFailed(_, reason):
                self._remove_bar()
                self._line(f"  no: {reason}", "yellow")
            case SourceDelivered():
                self._remove_bar()
                self._line("  ok", "green")
            case CommandStarted(command):
                self._line(f"  running {command}")
            case BytesReceived(file, received, total):
                self._draw_bar(file, received, total)

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style, markup=False)

    def _draw_bar(self, file: str, received: int, total: int | None) -> None:
        if self._bar is None or self._bar[0] != file:
            self._remove_bar()
            self._bars.start()
            self._bar = (file, self._bars.add_task(printable(file), total=total))
        self._bars.update(self._bar[1], completed=received, total=total)

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar[1])
            self._bar = None


class CountProgress:
    """A context in which it is shown how many of something are done: a bar, and a line at the end.

    Where the console is no terminal there are only lines, one at the beginning too.
    """

    def __init__(self, console: Console, beginning: str, end: str) -> None:
        self._console = console
        self._end = end
        self._begun_s = time.monotonic()
        self._bar = Progress(
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(printable(beginning), total=None)
        if not console.is_terminal:
            console.print(beginning)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Moves the bar; when all is done, says how long it took."""
        self._bar.update(self._task, completed=done, total=total)
        if done == total:
            seconds = time.monotonic() - self._begun_s
            self._console.print(f"{total:,} {self._end} in {seconds:.1f} s")


def fitting(parts: Sequence[str], cells: int) -> str:
    """Return the first of these parts, separated by commas, that together fit into ``cells``."""
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if len(longer) > cells:
            break
        text = longer
    return text


class TrainingProgress:
    """A context in which a training run is shown: a line that stays for each evaluation, and a
    live one where the console is a terminal.

    ``joining`` gives the command with which a worker joins the server at an address; None: nobody
    may. ``publish`` is given each report. The run is ended early when ``wants_end`` is set.
    """

    wants_end = False

    def __init__(
        self,
        console: Console,
        samples_per_epoch: int,
        joining: Callable[[str], str] | None,
        publish: Callable[[dict[str, Any]], None] | None = None,
    ) -> None:
        self._console = console
        self._samples_per_epoch = samples_per_epoch
        self._joining = joining
        self._publish = publish
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}", markup=False),
            BarColumn(BAR_CELLS),
            TimeRemainingColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", epoch="-", details="", total=None)
        self._learnt: list[str] = []
        self._shown: set[str] = set()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, addresses: Sequence[str]) -> None:
        """Says where workers may join, if they may."""
        if self._joining is not None:
            for address in addresses:
                self._line(f"workers may join: {self._joining(address)}", "dim")

    def opened(self, lines: Sequence[str]) -> None:
        """Says what to paste on another host, which is indented, and how to take that back."""
        for line in lines:
            self._line(line, "" if line.startswith(" ") else "dim")

    def answers(self, address: str, keys: Path) -> None:
        """Says where the server's state can be asked for by whoever has these keys."""
        self._line(f"its state: {command_line('status', address, '--keys', keys)}", "dim")

    def loads(self, children: Sequence[RunningChild]) -> None:
        """Show what these processes load, if they report that they do."""
        for child in children:
            text = f"{child.name} is loading {child.is_loading}"
            if not child.is_loading or text in self._shown:
                continue
            self._shown.add(text)
            self._line(text, "dim")

    def progressed(self, report: dict[str, Any]) -> None:
        """Moves the live line."""
        if self._publish is not None:
            self._publish(report)
        if report["records"]:
            last = report["records"][-1]
            accuracy = last["accuracy"]
            self._learnt = [] if accuracy is None else [f"accuracy {accuracy:.1%}"]
            self._learnt.append(f"loss {last['loss']:.3f}")
        epoch = f"{report['samples'] / self._samples_per_epoch:.1f}/{report['epochs']}"
        details = [
            f"{report['samples_per_s']:,.0f} samples/s",
            *self._learnt,
            f"{report['worker_count']} workers",
            f"staleness {report['staleness_mean']:.1f}",
        ]
        self._progress.update(
            self._task,
            completed=report["samples"],
            total=report["samples_total"],
            epoch=epoch,
            details=fitting(details, self._console.width - len(f"epoch {epoch}") - BAR_AND_TIME),
        )

    def evaluated(self, samples: int, evaluation: Evaluation) -> None:
        self._line(f"epoch {samples / self._samples_per_epoch:5.1f}: {evaluation}")

    def warned(self, text: str) -> None:
        self._line(text, "yellow")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(text, style=style)
