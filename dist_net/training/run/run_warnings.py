"""What people are warned of while a run goes on, and again at its end. No I/O."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

WHEN_OVER = {
    "checkpoint_error": "checkpoints can be written again",
    "journal_error": "the journal can be written again",
    "metrics_error": "metrics can be written again",
    "staleness_warning": None,
}
"""The values of a report that are warnings, and what is said when one is over; None: nothing, and
the warning is said once in a run."""

NUMBERS = re.compile(r"\d+")


class RunWarnings:
    """Says what each report of a run warns of, once until it is over."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._open: dict[str, str] = {}
        self._last: dict[str, str] = {}

    def look(self, report: dict[str, Any]) -> None:
        """Says what is new in a server's report."""
        for kind, when_over in WHEN_OVER.items():
            warning = report[kind]
            before = self._open.pop(kind, None) if when_over else self._last.get(kind)
            if warning is not None:
                self._open[kind] = self._last[kind] = warning
                # Its numbers may change from one report to the next.
                if before is None or NUMBERS.sub("", warning) != NUMBERS.sub("", before):
                    self._say(warning)
            elif before is not None and when_over is not None:
                self._say(when_over)

    @property
    def last(self) -> list[str]:
        """The last warning of each kind."""
        return list(self._last.values())
