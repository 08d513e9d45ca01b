"""The ranges that hyper-parameters and weights must lie in."""

import math

from dist_net.errors import HyperParameterError

TOO_LARGE = 2.0**64
"""A weight of this magnitude is of no more use than an infinite one: its square overflows."""


def require_fraction(name: str, value: float) -> None:
    """Raise ``HyperParameterError`` unless 0 ≤ value < 1."""
    if not 0 <= value < 1:
        raise HyperParameterError(f"{name}={value!r}: expected a number from 0 up to, but not, 1")


def require_positive(name: str, value: float) -> None:
    """Raise ``HyperParameterError`` unless value is finite and above 0."""
    if not (value > 0 and math.isfinite(value)):
        raise HyperParameterError(f"{name}={value!r}: expected a finite number above 0")


def require_not_negative(name: str, value: float) -> None:
    """Raise ``HyperParameterError`` unless value is finite and not below 0."""
    if not (value >= 0 and math.isfinite(value)):
        raise HyperParameterError(f"{name}={value!r}: expected a finite number, 0 or above")
