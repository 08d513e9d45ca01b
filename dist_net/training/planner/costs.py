"""Measured costs of a push and its reply, stored as JSON. Pure."""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dist_net.errors import CostsDamagedError, SettingError

SHARED_MEMORY = "shared-memory"
RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
GOODPUT = 1448 / 1538
"""Share of the line rate left to messages after Ethernet, IP and TCP headers (MTU 1,500 bytes)."""

LARGEST = 1e12
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Network:
    """The network between a server and its workers.

    ``bytes_per_s``: rate of the server's interface per direction; None: shared memory.
    ``latency_s``: one-way latency.
    """

    bytes_per_s: float | None = None
    latency_s: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``shared-memory`` or a value such as ``1gbit:0.1ms``; raise ``SettingError``."""
        if text == SHARED_MEMORY:
            return cls()
        number = r"(\d{1,9}(?:\.\d{1,9})?)"
        pattern = f"{number}({'|'.join(RATE_UNITS)}):{number}({'|'.join(TIME_UNITS)})"
        found = re.fullmatch(pattern, text, re.ASCII)
        if found is None or float(found[1]) == 0:
            raise SettingError(
                f"network={text!r}: expected {SHARED_MEMORY}, or a rate above 0 and a latency, "
                f"such as 1gbit:0.1ms or 100mbit:20ms"
            )
        bits_per_s = float(found[1]) * RATE_UNITS[found[2]]
        return cls(bits_per_s / 8, float(found[3]) * TIME_UNITS[found[4]])

    def __str__(self) -> str:
        if self.bytes_per_s is None:
            return SHARED_MEMORY
        bits_per_s = 8 * self.bytes_per_s
        unit = next((name for name in ("gbit", "mbit") if bits_per_s >= RATE_UNITS[name]), "kbit")
        return f"{bits_per_s / RATE_UNITS[unit]:g}{unit}:{1e3 * self.latency_s:g}ms"


@dataclass(frozen=True)
class ExchangeCost:
    """CPU time that a thread spends on a push of gradients and its reply.

    The sum of ``message_us``, ``gradient_us`` per gradient, ``weights_ns`` per parameter, and
    ``gradient_ns`` per parameter of each gradient.
    """

    message_us: float
    gradient_us: float
    weights_ns: float
    gradient_ns: float

    def request_s(self, gradients: int, parameters: int) -> float:
        """Return the cost of the push."""
        of_gradient_s = 1e-6 * self.gradient_us + 1e-9 * self.gradient_ns * parameters
        return 0.5e-6 * self.message_us + gradients * of_gradient_s

    def answer_s(self, parameters: int) -> float:
        """Return the cost of the reply."""
        return 0.5e-6 * self.message_us + 1e-9 * self.weights_ns * parameters

    def exchange_s(self, gradients: int, parameters: int) -> float:
        """Return the cost of the push and its reply."""
        return self.request_s(gradients, parameters) + self.answer_s(parameters)

    def vectors_s(self, gradients: int, parameters: int) -> float:
        """Return the part of the cost that is proportional to the number of parameters."""
        return 1e-9 * parameters * (self.weights_ns + gradients * self.gradient_ns)


@dataclass(frozen=True)
class TransportCosts:
    """CPU time per thread of the server and a worker, and the latency of a message.

    The ``server`` thread updates the weights and the ``worker`` thread computes gradients. The
    ``server_transport`` and ``worker_transport`` threads copy and encrypt. ``latency_us`` is one
    way and comes on top.
    """

    server: ExchangeCost
    server_transport: ExchangeCost
    worker: ExchangeCost
    worker_transport: ExchangeCost
    latency_us: float

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """Return costs from a ``dataclasses.asdict`` dict; raise ``KeyError``, ``TypeError``."""
        *threads, latency = (each.name for each in fields(cls))
        costs: dict[str, Any] = {name: ExchangeCost(**state[name]) for name in threads}
        return cls(**costs, **{latency: state[latency]})


@dataclass(frozen=True)
class ClusterCosts:
    """Costs measured on one host: a training step of a recipe, and each transport."""

    parameters: int
    batch_size: int
    threads: int
    step_ms: float
    shared_memory: TransportCosts
    tcp: TransportCosts

    def to_json(self) -> str:
        """Return JSON for ``from_json``, one number per line."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the saved costs; raise ``CostsDamagedError`` if ``text`` is invalid."""
        try:
            state = json.loads(text)
            for name in ("shared_memory", "tcp"):
                state[name] = TransportCosts.from_json(state[name])
            costs = cls(**state)
            _require_numbers(asdict(costs))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CostsDamagedError(
                f"invalid cluster costs ({error}); expected a file written by 'dist-net simulate "
                f"RECIPE --measure --save-costs FILE'"
            ) from error
        return costs


def _require_numbers(state: dict[str, Any]) -> None:
    for name, value in state.items():
        if isinstance(value, dict):
            _require_numbers(value)
        elif isinstance(value, bool) or not isinstance(value, int | float):
            raise TypeError(f"{name} is {value!r}")
        elif (
            (
                name in ("parameters", "batch_size", "threads")
                and not (isinstance(value, int) and value >= 1)
            )
            or not 0 <= value <= LARGEST
            or (name == "step_ms" and value == 0)
        ):
            raise ValueError(f"{name} is {value!r}")
