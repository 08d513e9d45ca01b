"""Text from elsewhere as a terminal may be given it."""

from __future__ import annotations

import logging
from typing import Any


def printable(text: str, kept: str = "") -> str:
    """One line of ``text``, without what a terminal would obey: ``\\x1b`` in place of an escape.

    The characters in ``kept`` stay as they are.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


class PrintableFormatter(logging.Formatter):
    """Formats log records for a terminal: names and reasons in them may come from other hosts."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), kept="\n\t")


def printable_report(report: Any) -> Any:
    """A JSON value with every text in it printable."""
    if isinstance(report, str):
        return printable(report)
    if isinstance(report, list):
        return [printable_report(each) for each in report]
    if isinstance(report, dict):
        return {name: printable_report(each) for name, each in report.items()}
    return report
