"""When the results of workers enter the server's state, and with which weight. Pure.

Every worker takes the local steps of a lease from the server's state, and pushes the state that it
arrived at. The modes differ only in when the server applies the results:

rounds: once all leases of a round have arrived, by one step of an *outer optimizer* along the mean
    change (local SGD: Stich 2019, arXiv 1805.09767; DiLoCo: arXiv 2311.08105). The optimizer's
    vectors and the buffers become the workers' mean.
async: each at once, divided by the number of workers. Workers never wait. With one local step to a
    lease, this is a parameter server's asynchronous SGD.
bsp: rounds of one local step, whose results are averaged (bulk synchronous parallel).
"""

from enum import StrEnum
from typing import NamedTuple

from dist_net.errors import SettingError


class Consistency(StrEnum):
    """The mode of a run; its value is the text in options and checkpoints."""

    ROUNDS = "rounds"
    ASYNC = "async"
    BSP = "bsp"

    @classmethod
    def parse(cls, text: str) -> "Consistency":
        """Return the mode of this name; raise ``SettingError`` for any other text."""
        try:
            return cls(text)
        except ValueError:
            raise SettingError(f"consistency={text!r}: expected one of {', '.join(cls)}") from None


class OuterStep(NamedTuple):
    """How the mean result of a round, or a single result, moves the server's state.

    With w the weights, r those of the result: Δ = w - r; m ← ``momentum`` m + Δ;
    w ← w - ``rate`` (Δ + ``momentum`` m), which is Nesterov's rule. All else moves by
    ``rate_of_others`` towards the result: a variance never becomes negative.
    """

    rate: float
    momentum: float
    rate_of_others: float


WHOLE = OuterStep(1.0, 0.0, 1.0)
