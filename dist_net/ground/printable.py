"""Text for a terminal: counted nouns, and text from other hosts made safe to print."""

import logging
from typing import Any


def printable(text: str, kept: str = "") -> str:
    """Return ``text`` with unprintable characters escaped: ``\\x1b`` for an escape character.

    The characters in ``kept`` are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() or each in kept else each.encode("unicode_escape").decode()
        for each in text
    )


def counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


class PrintableFormatter(logging.Formatter):
    """Formats log records for a terminal: their values may come from other hosts."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record), kept="\n\t")


def printable_report(report: Any) -> Any:
    if isinstance(report, str):
        return printable(report)
    if isinstance(report, list):
        return [printable_report(each) for each in report]
    if isinstance(report, dict):
        return {name: printable_report(each) for name, each in report.items()}
    return report
