"""What a push and its answer cost in a cluster: measured somewhere, and kept as JSON. Pure."""

import json
import re
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from dist_net.errors import CostsDamagedError, SettingError

SHARED_MEMORY = "shared-memory"
RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
GOODPUT = 1448 / 1538
"""What Ethernet, IP and TCP leave of a network's rate to messages, at an MTU of 1,500 bytes."""

LARGEST = 1e12
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


@dataclass(frozen=True)
class Network:
    """What lies between a server and its workers; ``bytes_per_s`` None: they share memory.

    ``bytes_per_s`` is what the server's interface carries, in each direction. ``latency_s`` is one
    way.
    """

    bytes_per_s: float | None = None
    latency_s: float = 0.0

    @classmethod
    def of(cls, text: str) -> Self:
        """Return what ``shared-memory``, or ``1gbit:0.1ms``, says.

        Raises ``SettingError`` for anything else.
        """
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
    """Processor time that a thread needs for a push of some gradients, with its answer.

    It is ``message_us``, ``gradient_us`` for each gradient, and what grows with the number of
    parameters: ``weights_ns`` for each, and ``gradient_ns`` for each of each gradient.
    """

    message_us: float
    gradient_us: float
    weights_ns: float
    gradient_ns: float

    def request_s(self, gradients: int, parameters: int) -> float:
        """The part of the push itself."""
        of_gradient_s = 1e-6 * self.gradient_us + 1e-9 * self.gradient_ns * parameters
        return 0.5e-6 * self.message_us + gradients * of_gradient_s

    def answer_s(self, parameters: int) -> float:
        """The part of the answer."""
        return 0.5e-6 * self.message_us + 1e-9 * self.weights_ns * parameters

    def exchange_s(self, gradients: int, parameters: int) -> float:
        """Both."""
        return self.request_s(gradients, parameters) + self.answer_s(parameters)

    def vectors_s(self, gradients: int, parameters: int) -> float:
        """What of that grows with the number of parameters."""
        return 1e-9 * parameters * (self.weights_ns + gradients * self.gradient_ns)


@dataclass(frozen=True)
class TransportCosts:
    """What the threads of a server and of a worker need, and how long a message is on its way.

    ``server`` and ``worker`` are the threads that update and compute; ``server_transport`` and
    ``worker_transport`` are those that copy and encrypt. ``latency_us`` is one way, and besides.
    """

    server: ExchangeCost
    server_transport: ExchangeCost
    worker: ExchangeCost
    worker_transport: ExchangeCost
    latency_us: float

    @classmethod
    def from_json(cls, state: dict[str, Any]) -> Self:
        """Return those of ``dataclasses.asdict``; raises ``KeyError`` or ``TypeError``."""
        *threads, latency = (each.name for each in fields(cls))
        costs: dict[str, Any] = {name: ExchangeCost(**state[name]) for name in threads}
        return cls(**costs, **{latency: state[latency]})


@dataclass(frozen=True)
class ClusterCosts:
    """What was measured on a host: a step of a recipe, and each transport."""

    parameters: int
    batch_size: int
    threads: int
    step_ms: float
    shared_memory: TransportCosts
    tcp: TransportCosts

    def to_json(self) -> str:
        """Return what ``from_json`` reads, with a line for each number."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the costs that were saved; raises ``CostsDamagedError`` for anything else."""
        try:
            state = json.loads(text)
            for name in ("shared_memory", "tcp"):
                state[name] = TransportCosts.from_json(state[name])
            costs = cls(**state)
            _require_numbers(asdict(costs))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CostsDamagedError(
                f"these are no costs of a cluster ({error}): expected what 'dist-net simulate "
                f"RECIPE --measure --save-costs FILE' writes"
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
