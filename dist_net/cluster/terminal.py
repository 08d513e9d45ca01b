"""What people see in a terminal: the console, and how far the fetching of files is."""

from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from dist_net.data.fetch import (
    BytesReceived,
    CommandStarted,
    FetchEvent,
    SourceDelivered,
    SourceFailed,
    SourceTried,
)


def plain_console(*, stderr: bool = True) -> Console:
    """A console on stderr, or on stdout, that reads nothing into the text that it is given.

    File names, addresses and messages may hold ``[brackets]`` and ``:words:``, which Rich would
    otherwise take for markup and emoji. Long lines are not wrapped, so that commands can be copied.
    """
    return Console(stderr=stderr, markup=False, emoji=False, highlight=False, soft_wrap=True)


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
        """Show one event."""
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
        self._console.print(Text(text, style))

    def _draw_bar(self, file: str, received: int, total: int | None) -> None:
        if self._bar is None or self._bar[0] != file:
            self._remove_bar()
            self._bars.start()
            self._bar = (file, self._bars.add_task(file, total=total))
        self._bars.update(self._bar[1], completed=received, total=total)

    def _remove_bar(self) -> None:
        if self._bar is not None:
            self._bars.remove_task(self._bar[1])
            self._bar = None
