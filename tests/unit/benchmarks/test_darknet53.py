"""What ``scripts/bench darknet53`` makes of its measurements."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import convolution_training, darknet53, rounds
from benchmarks.errors import BenchmarkError
from benchmarks.peers import darknet_task, folded, sgemm
from benchmarks.rounds import Contest, Contestant, Schedule, Start
from benchmarks.timing import LayerStep, time_layers
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import published
from naming import naming

MS = 1000.0
GFLOP = 1e9

MEASURED = darknet53.Measured(
    flops=18.57 * GFLOP,
    times={
        "plain": {(1, 2): 90 * MS, (8, 2): 8 * 72 * MS, (8, 1): 8 * 140 * MS},
        "fast": {(1, 2): 72 * MS, (8, 2): 8 * 54 * MS},
        "onnxruntime": {(1, 2): 96 * MS, (2, 2): 2 * 90 * MS, (8, 2): 8 * 100 * MS},
        "ncnn": {(1, 2): 60 * MS},
        "sgemm": {(1, 2): sgemm.FLOPS / 200e3},
    },
    starts={
        "plain": Start(1.2, 300_000_000),
        "fast": Start(1.5, 360_000_000),
        "onnxruntime": Start(0.6, 400_000_000),
        "ncnn": Start(0.5, 200_000_000),
    },
    versions={"plain": "1", "fast": "1", "onnxruntime": "1.32", "ncnn": "1.0"},
    layers=(),
)


@pytest.mark.parametrize(("name", "gflop"), [("darknet53", 18.57), ("resnext50", 10.11)])
def test_a_net_has_the_operations_that_its_authors_counted(name: str, gflop: float) -> None:
    network = DarknetNetwork(published(name).configuration())
    assert round(darknet_task.flops(network) / GFLOP, 2) == gflop


def test_a_batch_is_compared_with_the_best_batch_of_a_peer() -> None:
    assert darknet53.summary(MEASURED)["ratios"] == {
        "plain_latency_batch_1_to_onnxruntime": 0.938,
        "plain_per_image_batch_8_to_onnxruntime_best": 0.8,
        "plain_peak_memory_to_onnxruntime": 0.75,
        "plain_first_answer_to_onnxruntime": 2.0,
        "plain_latency_batch_1_to_ncnn": 1.5,
        "plain_per_image_batch_8_to_ncnn_latency": 1.2,
        "plain_peak_memory_to_ncnn": 1.5,
        "plain_first_answer_to_ncnn": 2.4,
        "fast_latency_batch_1_to_onnxruntime": 0.75,
        "fast_per_image_batch_8_to_onnxruntime_best": 0.6,
        "fast_peak_memory_to_onnxruntime": 0.9,
        "fast_first_answer_to_onnxruntime": 2.5,
        "fast_latency_batch_1_to_ncnn": 1.2,
        "fast_per_image_batch_8_to_ncnn_latency": 0.9,
        "fast_peak_memory_to_ncnn": 1.8,
        "fast_first_answer_to_ncnn": 3.0,
    }


def test_above_blas_is_the_direct_algorithm_at_the_speed_of_matrix_products() -> None:
    summary = darknet53.summary(MEASURED)
    assert summary["sgemm_gflops"] == 200.0
    assert summary["above_blas"] == pytest.approx(18.57 / (0.054 * 200), abs=1e-3)
    times = {name: of for name, of in MEASURED.times.items() if name != "fast"}
    without_fast = darknet53.summary(replace(MEASURED, times=times))
    assert without_fast["above_blas"] == pytest.approx(18.57 / (0.072 * 200), abs=1e-3)
    assert not [name for name in without_fast["ratios"] if name.startswith("fast")]


class Answering(Contest):
    """A contest whose processes answer what they are told to."""

    def __init__(self, **answers: Any) -> None:
        contestants = [Contestant(name, "none", (), ((1, 1),)) for name in answers]
        super().__init__(contestants, Path(), Schedule(), lambda _: None)
        self.answers = answers

    def order(self, contestant: Contestant, name: str, **details: Any) -> Any:
        return self.answers[contestant.name]


def test_a_peer_that_gives_other_answers_is_an_error() -> None:
    own = [[[0.1, 0.6, 0.3]]]
    darknet53.check_answers(Answering(plain=own, peer=[[[0.1, 0.60005, 0.29995]]]))
    with pytest.raises(BenchmarkError, match=naming("class 1", 0.0002, 0.0001)):
        darknet53.check_answers(Answering(plain=own, peer=[[[0.1, 0.6002, 0.2998]]]))
    with pytest.raises(BenchmarkError, match=naming("nan")):
        darknet53.check_answers(Answering(plain=own, peer=[[[0.1, 0.6, float("nan")]]]))
    with pytest.raises(BenchmarkError, match=naming((2,), (3,))):
        darknet53.check_answers(Answering(plain=own, peer=[[[0.4, 0.6]]]))
    close = [[[0.5, 0.49999, 0.00001]]]
    with pytest.raises(BenchmarkError, match=naming("class 1", 0)):
        darknet53.check_answers(Answering(plain=close, peer=[[[0.49998, 0.50001, 0.00001]]]))


def test_a_peer_that_trains_another_net_is_an_error() -> None:
    own = [2.3, 2.1, 2.0]
    convolution_training.check_losses(Answering(dist_net=own, pytorch=[2.3, 2.1, 2.001]))
    for losses in ([2.3, 2.1, 2.01], [2.3, float("nan"), 2.0]):
        with pytest.raises(BenchmarkError, match=naming("pytorch")):
            convolution_training.check_losses(Answering(dist_net=own, pytorch=losses))


def test_what_is_not_installed_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = {("numba",): "numba not installed"}
    monkeypatch.setattr(rounds, "missing_packages", lambda packages: missing.get(packages, ""))
    said: list[str] = []
    contest = Contest(darknet53.CONTESTANTS, Path(), Schedule(), said.append)
    assert [each.name for each in contest.contestants] == ["irreproducible", "plain"]
    assert said == ["left out fast: numba not installed; pip install -e '.[fast]'"]


def test_each_layer_has_its_own_median() -> None:
    clock = 0.0
    durations = iter([9, 9, 0.010, 0.030, 0.020, 0.010, 0.012, 0.020])

    def work() -> None:
        nonlocal clock
        clock += next(durations)

    steps = [LayerStep("conv", "winograd", 4e9, work), LayerStep("softmax", "numpy", 0, work)]
    # The first calls are not timed; three rounds fill the 0.1 seconds.
    assert time_layers(steps, batch=2, seconds=0.1, now=lambda: clock) == [
        {
            "layer": "conv",
            "algorithm": "winograd",
            "ms_per_image": 6.0,
            "effective_gflops": pytest.approx(333.3),
        },
        {"layer": "softmax", "algorithm": "numpy", "ms_per_image": 10.0, "effective_gflops": 0.0},
    ]


@pytest.mark.parametrize(
    ("layer", "named"),
    [
        ("[maxpool]\nsize=2\nstride=2", "000_maxpool"),
        ("[convolutional]\nfilters=6\ngroups=3\nactivation=leaky", "000_convolutional"),
        ("[convolutional]\nfilters=6\nactivation=relu", "000_convolutional"),
    ],
)
def test_a_layer_that_peers_are_not_given_is_an_error(layer: str, named: str) -> None:
    text = f"[net]\nheight=8\nwidth=8\nchannels=3\n{layer}\n"
    network = DarknetNetwork(parse_configuration(text, "other"))
    with pytest.raises(BenchmarkError, match=named):
        folded.fold(network, np.zeros(network.layout.size, np.float32))
