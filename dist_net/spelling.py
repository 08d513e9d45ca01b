"""Guesses what a person meant by a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean NAME?`` with the known name that is closest; nothing if none is close."""
    close = get_close_matches(word, list(known), 1)
    return f"did you mean {close[0]}?" if close else ""
