"""The costs of a cluster: its network, its exchanges of training states, and its steps. Pure."""

import json
import re
from dataclasses import asdict, dataclass
from typing import Any, Self

from dist_net.errors import CostsDamagedError, SettingError
from dist_net.json_records import record_from_json
from dist_net.optim import Optimizer, optimizer_named

SHARED_MEMORY = "shared-memory"
RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
LARGEST = 1e12


@dataclass(frozen=True)
class Network:
    """The network between a server and its workers.

    ``bytes_per_s``: rate of the server's interface per direction; None: shared memory.
    ``latency_s``: one-way latency. ``text``: as for ``parse``.
    """

    bytes_per_s: float | None = None
    latency_s: float = 0.0
    text: str = SHARED_MEMORY

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
        return cls(bits_per_s / 8, float(found[3]) * TIME_UNITS[found[4]], text)


def state_vectors(optimizer: str | Optimizer) -> int:
    """Return ``ClusterCosts.state_vectors``; raise ``SettingError`` for an unknown optimizer."""
    return 1 + len(optimizer_named(optimizer).initial_state)


@dataclass(frozen=True)
class ExchangeCost:
    """The cost of an exchange: a worker pushes its result and receives the next state.

    CPU times are the sum of a fixed part and a part per element of the training state: ``server``,
    of the busier of the server's two threads (one copies and encrypts messages), and
    ``round_trip``, of server and worker together, which work in turn. Raise ``SettingError``.
    """

    server_us: float
    server_ns: float
    round_trip_us: float
    round_trip_ns: float

    def __post_init__(self) -> None:
        _require_numbers(vars(self), least=0)

    def server_s(self, elements: int) -> float:
        return 1e-6 * self.server_us + 1e-9 * self.server_ns * elements

    def round_trip_s(self, elements: int) -> float:
        return 1e-6 * self.round_trip_us + 1e-9 * self.round_trip_ns * elements


@dataclass(frozen=True)
class ClusterCosts:
    """The size of a run, the time of its local steps, and the costs of its exchanges.

    A training state has ``state_vectors`` vectors of ``parameters`` elements: the parameters and
    the optimizer's vectors. ``minibatches`` counts all ``epochs``. ``step_ms`` is the time of
    a minibatch if each of a worker's ``threads`` has its own core. Raise ``SettingError``.
    """

    parameters: int
    state_vectors: int
    batch_size: int
    minibatches: int
    epochs: int
    threads: int
    step_ms: float
    shared_memory: ExchangeCost
    tcp: ExchangeCost

    def __post_init__(self) -> None:
        *counts, step, _, _ = vars(self).items()
        _require_numbers(dict(counts), least=1)
        _require_numbers(dict([step]), least=1e-6)

    def to_json(self) -> str:
        """Return JSON for ``from_json``, one number per line."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the saved costs; raise ``CostsDamagedError`` if ``text`` is invalid."""
        try:
            return record_from_json(cls, json.loads(text))
        except (SettingError, ValueError, TypeError, RecursionError) as error:
            raise CostsDamagedError(
                f"invalid cluster costs ({error}); expected a file written by 'dist-net simulate "
                f"RECIPE --measure --save-costs FILE'"
            ) from error


def _require_numbers(values: dict[str, Any], least: float) -> None:
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number and least <= value <= LARGEST):
            raise SettingError(
                f"{name}={value!r:.40}: expected a number from {least:g} to {LARGEST:g}"
            )
