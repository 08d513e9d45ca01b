"""Guesses what a person meant by a name that there is not."""

from collections.abc import Iterable
from difflib import get_close_matches


def closest(word: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``word``; None if none is like it."""
    return next(iter(get_close_matches(word, list(known), 1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``did you mean NAME?`` with the known name that is closest; nothing if none is close."""
    name = closest(word, known)
    return f"did you mean {name}?" if name else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """``did you mean NAME?``, or, if none is close, ``expected one of`` all of them."""
    names = list(known)
    return did_you_mean(word, names) or f"expected one of {', '.join(names)}"
