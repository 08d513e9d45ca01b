"""Predict a cluster's samples per second and how many workers pay. Pure.

In a round, each worker takes the local steps of a lease, as many as the server would choose. Then
the workers exchange their states for the server's, one after the other, as fast as the server, its
network or, in shared memory, the cores permit.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from dist_net.errors import SettingError
from dist_net.optim import Adam
from dist_net.training.server import round_plan
from dist_net.training.server.settings import RunSettings

MAX_WORKERS = 256

WORTHWHILE = 0.5
"""A worker pays if it adds this share of the speed of one worker alone."""

GOODPUT = 1448 / 1538
"""Share of the line rate left to messages after Ethernet, IP and TCP headers (MTU 1,500 bytes)."""

RATE_UNITS = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
TIME_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Network(NamedTuple):
    """The rate of the server's interface, per direction, and the latency to a worker, one way."""

    bytes_per_s: float
    latency_s: float

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a value such as ``1gbit:0.1ms``; raise ``SettingError``."""
        number = r"(\d{1,9}(?:\.\d{1,9})?)"
        pattern = f"{number}({'|'.join(RATE_UNITS)}):{number}({'|'.join(TIME_UNITS)})"
        found = re.fullmatch(pattern, text, re.ASCII)
        if found is None or float(found[1]) == 0:
            raise SettingError(
                f"network={text!r}: expected a rate above 0 and a latency, such as 1gbit:0.1ms or "
                f"100mbit:20ms"
            )
        bits_per_s = float(found[1]) * RATE_UNITS[found[2]]
        return cls(bits_per_s / 8, float(found[3]) * TIME_UNITS[found[4]])


def settings_of(parameters: int, minibatches: int, batch_size: int) -> RunSettings:
    """Return the settings of a run of one epoch with Adam; raise ``SettingError``."""
    layout = (("weights", (parameters,)),)
    return RunSettings("", "", layout, minibatches * batch_size, 1, batch_size, optimizer=Adam())


class PredictedCapacity(NamedTuple):
    """The prediction for one number of workers.

    ``waiting`` is the share of its time that a worker does not compute at full speed. ``limit``
    names its longest wait: for ``server``, ``network`` or ``cores``; or it is ``minibatch``, if a
    minibatch has too few samples for all workers.
    """

    workers: int
    samples_per_s: float
    local_steps: int
    waiting: float
    limit: str


@dataclass(frozen=True)
class ClusterPlan:
    """A run and the cluster to predict.

    ``step_s`` is the time of a whole minibatch on a core. Without ``network``, all processes share
    the memory and the ``cores`` of one host; otherwise, each has a host of its own.
    """

    settings: RunSettings
    step_s: float
    cores: int
    network: Network | None = None

    @cached_property
    def _run(self) -> round_plan.PlannedRun:
        settings = self.settings
        facts = settings.consistency, settings.minibatches, settings.batch_size
        return round_plan.PlannedRun(*facts, settings.start_rule().has_statistics)

    @cached_property
    def exchange_s(self) -> tuple[float, float]:
        """The CPU seconds of an exchange: a worker pushes its result and receives the next state.

        The first is the busier of the server's two threads (one copies and encrypts messages), the
        second is server and worker together, which work in turn. Medians of five measurements of
        Fashion-MNIST with Adam, on two cores of an Intel Xeon (virtual).
        """
        elements = self.settings.start_rule().state_size
        if self.network is None:
            return 173.2e-6 + 2.4e-9 * elements, 258.8e-6 + 3.5e-9 * elements
        return 317.3e-6 + 6.9e-9 * elements, 577.1e-6 + 19.2e-9 * elements

    def predict(self, workers: int) -> PredictedCapacity:
        run = self._run
        useful, batch_size, _ = round_plan.divided_minibatch(run, workers)
        own_step_s = step_s = self.step_s * batch_size / run.batch_size
        server_s, alone_s = self.exchange_s
        latency_s = 0.0
        if self.network is None:
            step_s *= max(1.0, useful / self.cores)
            resource, used_s = "cores", alone_s / self.cores
        else:
            packing = self.settings.packing
            # In a round, all results arrive before the first worker is answered.
            transferred = 4 * (packing.result_size + packing.base_size)
            resource, used_s = "network", transferred / (GOODPUT * self.network.bytes_per_s)
            latency_s = 2 * self.network.latency_s
            alone_s += used_s + latency_s
        exchange_s = alone_s + (useful - 1) * max(server_s, used_s)
        times = round_plan.LeaseTimes(exchange_s, step_s)
        planned = round_plan.plan_round(run, [times] * useful, self.settings.samples).steps
        steps = max(1, round(sum(planned) / useful))
        round_s = steps * step_s + exchange_s
        waits_s = {
            "server": useful * server_s,
            resource: useful * used_s + latency_s + steps * (step_s - own_step_s),
        }
        return PredictedCapacity(
            workers,
            useful * steps * batch_size / round_s,
            steps,
            1 - steps * own_step_s / round_s,
            max(waits_s, key=waits_s.__getitem__) if useful == workers else "minibatch",
        )

    def most_that_pay(self) -> PredictedCapacity:
        """Return the prediction for the number of workers that pay; see ``WORTHWHILE``.

        Fewer workers are slower by at least ``WORTHWHILE`` for each worker less, and more are
        faster by at most as much for each worker more.
        """
        least_gain = WORTHWHILE * self.predict(1).samples_per_s
        useful = round_plan.divided_minibatch(self._run, MAX_WORKERS).workers
        predictions = map(self.predict, range(1, useful + 1))
        return max(predictions, key=lambda each: each.samples_per_s - least_gain * each.workers)
