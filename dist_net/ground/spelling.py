"""Explain calls that other libraries would accept: unknown names, and arguments that do not fit."""

from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from functools import wraps
from inspect import Parameter, signature
from typing import ParamSpec, Self, TypeVar

from dist_net.errors import UnknownAttributeError, UnknownOptionError

P = ParamSpec("P")
R = TypeVar("R")

USUAL_NAMES = {
    "lr": "learning_rate",
    "criterion": "loss",
    "validation_data": "validation",
    "validation_split": "validation",
    "port": "http",
    "kernel_size": "size",
    **dict.fromkeys(("maxpool2d", "maxpooling2d"), "maxpool"),
    **dict.fromkeys(("avgpool2d", "averagepooling2d"), "averagepool"),
    "steps_per_epoch": "steps",
    "linear": "dense",
    "module": "layer",
    **dict.fromkeys(
        ("crossentropyloss", "cross_entropy", "crossentropy", "nll_loss", "log_loss"),
        "cross_entropy_of_logits",
    ),
    "bceloss": "binary_cross_entropy_of_probabilities",
    "bcewithlogitsloss": "binary_cross_entropy_of_logits",
    "mseloss": "mean_squared_error",
    "l1loss": "mean_absolute_error",
}
"""Options and names of Keras and PyTorch, in lower case, and our names for them."""

OF_TRAINING = "it is an option of fit, train and Recipe"
OF_MODEL = "it is an argument of Model"
ELSEWHERE = {
    **dict.fromkeys(("learning_rate", "lr"), OF_TRAINING),
    **dict.fromkeys(("input_shape", "input_dim", "loss"), OF_MODEL),
}
"""Where to pass options that other libraries expect elsewhere."""


def closest(word: str, known: Iterable[str]) -> str | None:
    """Return the known name most similar to ``word``; None if none is similar."""
    names = {_plain(name): name for name in known}
    word = USUAL_NAMES.get(_plain(word), _plain(word))
    return next((names[each] for each in get_close_matches(word, names, 1)), None)


def _plain(name: str) -> str:
    return name.lstrip("-").replace("-", "_").lower()


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
        guess = did_you_mean(name, names) or ELSEWHERE.get(name) or suggestion(name, names)
        raise UnknownOptionError(f"{function} has no option {name}; {guess}")


def explained(expected: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function: raise UnknownOptionError with what is ``expected`` for a wrong call."""

    def of(function: Callable[P, R]) -> Callable[P, R]:
        accepted = signature(function)
        name = function.__qualname__.removesuffix(".__init__")
        named = accepted.parameters
        takes_others = any(each.kind is Parameter.VAR_KEYWORD for each in named.values())

        @wraps(function)
        def call(*values: P.args, **given: P.kwargs) -> R:
            if not takes_others:
                refuse_options(name, given.keys() - named.keys(), named)
            try:
                accepted.bind(*values, **given)
            except TypeError as error:
                raise UnknownOptionError(f"{name}: {error}; expected {expected}") from None
            return function(*values, **given)

        return call

    return of


def no_attribute(owner: object, name: str, habits: Mapping[str, str]) -> UnknownAttributeError:
    """Return the error for an attribute that other libraries have, or that is spelt otherwise."""
    hint = habits.get(name) or did_you_mean(name, [each for each in dir(owner) if each[0] != "_"])
    text = f"{type(owner).__name__} has no attribute {name}; {hint}"
    return UnknownAttributeError(text.removesuffix("; "))


class KnownOptions:
    """A dataclass that refuses unknown arguments with UnknownOptionError and the nearest name."""

    def __new__(cls, *_: object, **given: object) -> Self:
        fields = getattr(cls, "__dataclass_fields__", given)
        refuse_options(cls.__name__, given.keys() - fields.keys(), fields)
        return super().__new__(cls)
