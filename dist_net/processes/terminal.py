"""Terminal output: the console, and the progress of downloads."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from dist_net.data import FetchEvent
from dist_net.ground.printable import printable

BAR_CELLS = 12
BAR_AND_TIME = BAR_CELLS + len(" ") + len(" -:--:--") + len(" ")
ANNOUNCED_AFTER_S = 1.0


@contextmanager
def announced(console: Console, what: str) -> Iterator[None]:
    """Print ``what`` if the body of the context takes longer than ``ANNOUNCED_AFTER_S``."""
    timer = threading.Timer(ANNOUNCED_AFTER_S, console.print, [what], {"style": "dim"})
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class PrintableConsole(Console):
    """A console that escapes the control characters in its text."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, kept="\n\t"), **options)


def plain_console(*, stderr: bool = True, quiet: bool = False) -> Console:
    """Return a console on stderr or stdout that prints text as it is; ``quiet`` prints nothing.

    Rich would read ``[brackets]`` and ``:words:`` in file names, addresses and messages as markup
    and emoji. Long lines are not wrapped, so that commands can be copied.
    """
    return PrintableConsole(
        stderr=stderr, quiet=quiet, markup=False, emoji=False, highlight=False, soft_wrap=True
    )


def bar_on(console: Console, *columns: ProgressColumn) -> Progress:
    """Return a bar that a terminal shows until it is stopped; nothing elsewhere."""
    # Rich calls a notebook a terminal, where a bar would need ipywidgets.
    shows_bars = console.is_terminal and not console.is_jupyter
    return Progress(*columns, console=console, transient=True, disable=not shows_bars)


class FetchProgress(AbstractContextManager["FetchProgress"]):
    """A context manager that shows each ``FetchEvent``; download bars on a terminal only."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = bar_on(
            console,
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
        )
        self._file: str | None = None

    def __exit__(self, *_: object) -> None:
        self._clear()

    def __call__(self, event: FetchEvent) -> None:
        if event.received is None:
            self._clear()
            self._console.print(event.text, markup=False)
            return
        if event.text != self._file:
            self._clear()
            self._file = event.text
            self._bars.start()
            self._bars.add_task(printable(event.text))
        self._bars.update(self._bars.task_ids[0], completed=event.received, total=event.total)

    def _clear(self) -> None:
        if self._file is not None:
            self._bars.stop()
            self._bars.remove_task(self._bars.task_ids[0])
            self._file = None


class CountProgress:
    """A context: a bar, or without a terminal a line, while a count grows; a line at its end."""

    def __init__(self, console: Console, beginning: str, end: str) -> None:
        self._console = console
        self._end = end
        self._begun_s = time.monotonic()
        self._bar = bar_on(
            console,
            TextColumn("  {task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
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
        """Update the bar; print the duration once ``done`` reaches ``total``."""
        self._bar.update(self._task, completed=done, total=total)
        if done == total:
            seconds = time.monotonic() - self._begun_s
            self._console.print(f"{total:,} {self._end} in {seconds:.1f} s")


def fitting(parts: Sequence[str], cells: int) -> str:
    """Join as many of the first parts with commas as fit into ``cells`` columns."""
    text = ""
    for part in parts:
        longer = f"{text}, {part}" if text else part
        if len(longer) > cells:
            break
        text = longer
    return text
