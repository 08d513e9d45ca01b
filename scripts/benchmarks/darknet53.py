"""``scripts/bench darknet53``: inference of Darknet-53 beside other runtimes, and training.

All are given the same seeded weights and the same images, and have to give the same answers
before anything is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import convolution_training
from benchmarks.errors import BenchmarkError
from benchmarks.peers import darknet_task, sgemm
from benchmarks.peers.dist_net_inference import FAST, IRREPRODUCIBLE, PLAIN
from benchmarks.rounds import Contest, Contestant, Medians, Schedule, Start
from dist_net.nets.darknet.configuration import Configuration
from dist_net.nets.darknet.published import published

THREADS = 2
BATCHES = (1, 2, 4, 8)
LARGEST_DIFFERENCE = 1e-4
ALL = tuple((batch, THREADS) for batch in BATCHES)
OURS = (*ALL, *((batch, 1) for batch in BATCHES))
MODULE = "dist_net_inference"

CONTESTANTS = (
    Contestant(IRREPRODUCIBLE, MODULE, ("numpy",), (ALL[0], ALL[-1]), (IRREPRODUCIBLE,)),
    Contestant(PLAIN, MODULE, ("numpy",), OURS, (PLAIN,)),
    Contestant(FAST, MODULE, ("numba",), OURS, (FAST,), extra="fast"),
)
YARDSTICK = Contestant("sgemm", "sgemm", ("numpy",), ((1, THREADS),))
PEERS = (
    Contestant("onnxruntime", "onnxruntime_inference", ("onnxruntime", "onnx"), ALL),
    Contestant("pytorch", "pytorch_inference", ("torch",), ALL),
    Contestant("openvino", "openvino_inference", ("openvino", "onnx"), ALL),
    Contestant("ncnn", "ncnn_inference", ("ncnn",), ALL[:1]),
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Measured:
    """What one run found: per contestant the median microseconds of each case, and its starts."""

    flops: float
    times: Mapping[str, Medians]
    starts: Mapping[str, Start]
    versions: Mapping[str, str]
    layers: Sequence[Row]

    def us_per_image(self, name: str, batch: int, threads: int = THREADS) -> float:
        """Of one case."""
        return self.times[name][batch, threads] / batch

    def best_us_per_image(self, name: str) -> float:
        """At the best batch."""
        return min(self.us_per_image(name, batch) for batch, _ in self.times[name])

    @property
    def sgemm_gflops(self) -> float:
        """The yardstick, in the same run on as many threads."""
        return 1e-3 * sgemm.FLOPS / self.times[YARDSTICK.name][1, THREADS]


def measure(with_peers: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """``results``, ``peers``, ``ratios`` and more, as the command line's JSON has them.

    Raises BenchmarkError if a measurement fails, or a peer gives other answers than ours.
    """
    schedule = Schedule()
    measured = contest(published("darknet53").configuration(), schedule, with_peers, say)
    result = summary(measured)
    result["training"] = training = convolution_training.measure(schedule, with_peers, say)
    result["ratios"] |= convolution_training.ratios(training)
    return result


def contest(
    configuration: Configuration, schedule: Schedule, with_peers: bool, say: Callable[[str], None]
) -> Measured:
    """Measures a net of the layers of Darknet-53."""
    contestants = (*CONTESTANTS, *(PEERS if with_peers else ()))
    with tempfile.TemporaryDirectory() as temporary:
        directory = Path(temporary)
        say("writing seeded weights")
        flops = darknet_task.write_net(configuration, directory)
        with Contest(contestants, directory, schedule, say) as inference:
            inference.prepare()
            starts = inference.starts(1, THREADS)
            check_answers(inference)
            versions = {
                each.name: inference.order(each, "version") for each in inference.contestants
            }
            inference.add(YARDSTICK)
            times = inference.times()
            layers = layer_rows(inference, schedule.seconds)
    return Measured(flops, times, starts, versions, layers)


def check_answers(inference: Contest) -> None:
    """Raises BenchmarkError for a contestant whose probabilities are not ours."""
    answers = {
        each.name: np.array(inference.order(each, "answer", batch=1, threads=THREADS)[0][0])
        for each in inference.contestants
    }
    own = answers[PLAIN]
    for name, theirs in answers.items():
        if theirs.shape != own.shape:
            raise BenchmarkError(f"{name} gives {theirs.shape} probabilities, we {own.shape}")
        difference = float(np.abs(theirs - own).max())
        if not difference <= LARGEST_DIFFERENCE or theirs.argmax() != own.argmax():
            raise BenchmarkError(
                f"{name} gives other answers than plain NumPy: class {theirs.argmax()} instead of "
                f"{own.argmax()}, probabilities up to {difference:.2g} apart; expected the same "
                f"class and at most {LARGEST_DIFFERENCE:g}"
            )


def layer_rows(inference: Contest, seconds: float) -> list[Row]:
    """The layers of ours, at the smallest and the largest batch."""
    rows = []
    for each in inference.contestants:
        if each.module == MODULE:
            for batch in (BATCHES[0], BATCHES[-1]):
                details = {"batch": batch, "threads": THREADS, "seconds": seconds}
                for row in inference.order(each, "layers", **details):
                    rows.append({"kernels": each.name, "batch": batch, **row})
    return rows


def summary(measured: Measured) -> dict[str, Any]:
    """The JSON of a run of ``contest``."""
    own = [name for name in (IRREPRODUCIBLE, PLAIN, FAST) if name in measured.times]
    others = [name for name in measured.times if name not in (*own, YARDSTICK.name)]
    us_per_image = measured.us_per_image(own[-1], BATCHES[-1])
    above_blas = 1e-3 * measured.flops / us_per_image / measured.sgemm_gflops
    return {
        "results": [{"kernels": name, **row} for name in own for row in case_rows(measured, name)],
        "peers": [
            {"peer": name, "version": measured.versions[name], **row}
            for name in others
            for row in case_rows(measured, name)
        ],
        "ratios": {
            name: round(ratio, 3)
            for kernels in own
            for name, ratio in ratios(measured, kernels, others).items()
        },
        "sgemm_gflops": round(measured.sgemm_gflops, 1),
        "above_blas": round(above_blas, 3),
        "starts": [
            {
                "name": name,
                "seconds_to_first_answer": round(start.seconds, 3),
                "peak_mb": round(1e-6 * start.peak_bytes, 1),
            }
            for name, start in measured.starts.items()
        ],
        "layers": list(measured.layers),
    }


def case_rows(measured: Measured, name: str) -> list[Row]:
    """``batch threads ms_per_image effective_gflops`` of each case."""
    return [
        {
            "batch": batch,
            "threads": threads,
            "ms_per_image": round(1e-3 * time / batch, 3),
            "effective_gflops": round(1e-3 * measured.flops * batch / time, 1),
        }
        for (batch, threads), time in measured.times[name].items()
    ]


def ratios(measured: Measured, kernels: str, others: Sequence[str]) -> dict[str, float]:
    """Ours to theirs, below 1 where ours is better; ``kernels`` begins each name."""
    latency = measured.us_per_image(kernels, BATCHES[0])
    in_batch = measured.us_per_image(kernels, BATCHES[-1])
    found = {}
    if kernels == PLAIN and IRREPRODUCIBLE in measured.times:
        other = measured.us_per_image(IRREPRODUCIBLE, BATCHES[-1])
        found[f"per_image_batch_{BATCHES[-1]}_to_{IRREPRODUCIBLE}"] = in_batch / other
    for name in others:
        theirs = measured.us_per_image(name, BATCHES[0])
        found[f"latency_batch_{BATCHES[0]}_to_{name}"] = latency / theirs
        against = f"per_image_batch_{BATCHES[-1]}_to_{name}"
        if len(measured.times[name]) > 1:
            found[f"{against}_best"] = in_batch / measured.best_us_per_image(name)
        else:
            found[f"{against}_latency"] = in_batch / theirs
        own_start, start = measured.starts[kernels], measured.starts[name]
        found[f"peak_memory_to_{name}"] = own_start.peak_bytes / start.peak_bytes
        found[f"first_answer_to_{name}"] = own_start.seconds / start.seconds
    return {f"{kernels}_{name}": ratio for name, ratio in found.items()}
