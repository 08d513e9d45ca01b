"""Checks of a server, their registration, and their outcomes.

A check is a function of a server. It returns if the server conforms, and raises ``Failed`` or
``NotOffered`` otherwise. Its source is the heading of the specification that it follows:
kserve/open-inference-protocol, or, for an extension, the page of Triton's that defines it.
"""

import http.client
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

MUST, CONVENTION = "must", "convention"
PASS, FAIL, NOT_OFFERED = "pass", "fail", "not offered"

MAX_SHOWN = 400  # characters of a request or a response
# Raised by a check when a response is missing or has another structure.
_UNEXPECTED = (
    *(AttributeError, IndexError, KeyError, TypeError, ValueError, OverflowError),
    *(OSError, http.client.HTTPException),
)


class Failed(Exception):
    def __init__(self, sent: str, expected: str, received: str) -> None:
        super().__init__(f"sent {sent}; expected {expected}; received {received}")
        self.sent, self.expected, self.received = sent, expected, received


class NotOffered(Exception):
    """The server, or its model, lacks what the check is about."""


@dataclass(frozen=True)
class Check:
    family: str
    name: str
    source: str
    level: str
    run: Callable[[Any], None]
    extension: str = ""


@dataclass(frozen=True)
class Outcome:
    """A check's result; ``received`` is the reason if it is not offered."""

    family: str
    name: str
    source: str
    level: str
    result: str
    sent: str = ""
    expected: str = ""
    received: str = ""

    def to_json(self) -> dict[str, str]:
        return asdict(self)


CHECKS: list[Check] = []


@dataclass(frozen=True)
class Family:
    """Checks with one subject; an ``extension`` is checked if the server's metadata lists it."""

    name: str
    extension: str = ""

    def __call__(
        self, source: str, name: str, level: str = MUST
    ) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
        """Register a function as a check."""

        def register(function: Callable[[Any], None]) -> Callable[[Any], None]:
            CHECKS.append(Check(self.name, name, source, level, function, self.extension))
            return function

        return register


def run_checks(server: Any, checks: Iterable[Check]) -> Iterator[Outcome]:
    """Yield the outcome of each check. ``server`` is what the checks take."""
    for check in checks:
        result, details = PASS, ("", "", "")
        try:
            if check.extension and check.extension not in server.extensions:
                raise NotOffered(f"the server's metadata does not list {check.extension}")
            check.run(server)
        except NotOffered as error:
            result, details = NOT_OFFERED, ("", "", str(error))
        except Failed as error:
            result, details = FAIL, (error.sent, error.expected, error.received)
        except _UNEXPECTED as error:
            what = "a response of the specified structure"
            result, details = FAIL, (server.last_sent, what, f"{type(error).__name__}: {error}")
        yield Outcome(check.family, check.name, check.source, check.level, result, *details)


def shortened(text: str) -> str:
    shown = "".join(o if o.isprintable() else f"\\x{ord(o):02x}" for o in text[:MAX_SHOWN])
    return shown if len(text) <= MAX_SHOWN else f"{shown}… ({len(text):,} characters)"
