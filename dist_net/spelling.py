"""Suggest a known name for an unknown one."""

from collections.abc import Iterable
from difflib import get_close_matches

from dist_net.errors import UnknownOptionError

USUAL_NAMES = {
    "lr": "learning_rate",
    "criterion": "loss",
    "validation_data": "validation",
    "validation_split": "validation",
}
"""Options of Keras and PyTorch, and our names for them."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to ``word``; None if none is similar."""
    return next(iter(get_close_matches(word, list(known), 1)), None)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean NAME?`` with the closest known name; "" if none is close."""
    name = closest(word, known)
    return f"did you mean {name}?" if name else ""


def suggestion(word: str, known: Iterable[str]) -> str:
    """Return ``did you mean NAME?``, or, if none is close, ``expected one of`` all names."""
    names = list(known)
    return did_you_mean(word, names) or f"expected one of {', '.join(names)}"


def refuse_options(function: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Raise UnknownOptionError, with a suggestion, if any option is given."""
    names = [each for each in known if not each.startswith("_")]
    for name in given:
        usual = USUAL_NAMES.get(name)
        hint = f"did you mean {usual}?" if usual in names else suggestion(name, names)
        raise UnknownOptionError(f"{function} has no option {name}; {hint}")
