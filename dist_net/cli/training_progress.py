"""A training run in a terminal: a live line, and a line that stays for each evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from dist_net.training.evaluation import Evaluation


class TrainingProgress:
    """A context in which a run is shown; the live line only where the console is a terminal.

    ``joining`` gives the command with which a worker joins the server at an address.
    """

    def __init__(
        self, console: Console, samples_per_epoch: int, joining: Callable[[str], str]
    ) -> None:
        self._console = console
        self._samples_per_epoch = samples_per_epoch
        self._joining = joining
        self._progress = Progress(
            TextColumn("epoch {task.fields[epoch]}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            TextColumn("{task.fields[details]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("", epoch="-", speed="", details="", total=None)
        self._loss = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def started(self, addresses: Sequence[str]) -> None:
        """Says where workers may join."""
        for address in addresses:
            self._line(f"workers may join: {self._joining(address)}", "dim")

    def progressed(self, report: dict[str, Any]) -> None:
        """Moves the live line."""
        if report["records"]:
            last = report["records"][-1]
            self._loss = f"loss {last['loss']:.3f}, accuracy {last['accuracy']:.1%}, "
        self._progress.update(
            self._task,
            completed=report["samples"],
            total=report["samples_total"],
            epoch=f"{report['samples'] / self._samples_per_epoch:.1f}/{report['epochs']}",
            speed=f"{report['samples_per_s']:,.0f} samples/s",
            details=f"{self._loss}staleness {report['staleness_mean']:.1f}, "
            f"{len(report['workers'])} workers",
        )

    def evaluated(self, samples: int, evaluation: Evaluation) -> None:
        """Says how well the weights did on the test images."""
        self._line(
            f"epoch {samples / self._samples_per_epoch:5.1f}: test accuracy "
            f"{evaluation.accuracy:.2%}, test loss {evaluation.loss:.4f}"
        )

    def warned(self, text: str) -> None:
        """Says what went wrong."""
        self._line(text, "yellow")

    def _line(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style))
