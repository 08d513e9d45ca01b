"""Other people's runtimes in their processes: on a small net they give the same answers as ours."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import convolution_training, darknet53, photos
from benchmarks.errors import BenchmarkError
from benchmarks.peers import darknet_task
from benchmarks.peers.dist_net_inference import DistNet
from benchmarks.peers.peer_process import PeerProcess, missing_packages
from benchmarks.rounds import Contestant, Schedule
from dist_net.nets.darknet.configuration import Configuration, parse_configuration
from naming import naming

QUICK = Schedule(rounds=1, seconds=0.0, starts=1, pause_s=0.0)

NORMALIZED = "batch_normalize=1\nactivation=leaky\npad=1"
NET = f"""
[net]
height=16
width=12
channels=3
[convolutional]
filters=8
size=3
{NORMALIZED}
[convolutional]
filters=16
size=3
stride=2
{NORMALIZED}
[convolutional]
filters=8
size=1
{NORMALIZED}
[convolutional]
filters=16
size=3
{NORMALIZED}
[shortcut]
from=-3
activation=linear
[avgpool]
[convolutional]
filters=10
size=1
activation=linear
[softmax]
groups=1
"""


@pytest.fixture
def net() -> Configuration:
    return parse_configuration(NET, "small")


def require(contestant: Contestant) -> None:
    if reason := missing_packages(contestant.packages):
        pytest.skip(reason)


@pytest.mark.parametrize("peer", darknet53.PEERS, ids=lambda peer: peer.name)
def test_a_peer_gives_our_answers(peer: Contestant, net: Configuration, tmp_path: Path) -> None:
    require(peer)
    darknet_task.write_net(net, tmp_path)
    batch, _ = peer.cases[-1]
    own = DistNet("plain").load(tmp_path, batch, threads=1)()
    with peer.process(tmp_path) as process:
        process.order("prepare")
        (theirs,) = process.order("answer", batch=batch, threads=1)
        assert process.order("time", batch=batch, threads=1, seconds=0.0) > 0
    np.testing.assert_allclose(theirs, own, rtol=0, atol=1e-6)
    assert own.std() > 0.01


@pytest.mark.parametrize("batch_norm", photos.STEPS.values())
def test_pytorch_trains_lite0_as_we_do(batch_norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (pytorch,) = photos.STEP_PEERS
    require(pytorch)
    case = ((2, 1),)
    monkeypatch.setattr(photos, "STEP", replace(photos.STEP, cases=case))
    monkeypatch.setattr(photos, "STEP_PEERS", (replace(pytorch, cases=case),))
    cases = photos.step_cases("training_step", batch_norm, QUICK, True, lambda _: None)
    assert list(photos.ratios(cases)) == [
        "training_step_to_pytorch",
        "training_step_peak_memory_to_pytorch",
    ]


def test_pytorch_trains_the_net_of_the_recipe_as_we_do(monkeypatch: pytest.MonkeyPatch) -> None:
    (pytorch,) = convolution_training.PEERS
    require(pytorch)
    case = ((8, 1),)
    monkeypatch.setattr(
        convolution_training, "OURS", replace(convolution_training.OURS, cases=case)
    )
    monkeypatch.setattr(convolution_training, "PEERS", (replace(pytorch, cases=case),))
    rows = convolution_training.measure(QUICK, with_peers=True, say=lambda _: None)
    assert [(row["name"], row["batch"], row["threads"]) for row in rows] == [
        ("dist_net", 8, 1),
        ("pytorch", 8, 1),
    ]
    assert list(convolution_training.ratios(rows)) == ["conv_training_step_to_pytorch"]


def test_a_process_that_fails_is_an_error_with_its_last_words(tmp_path: Path) -> None:
    with (
        PeerProcess("peers.dist_net_inference", tmp_path, "plain") as process,
        pytest.raises(
            BenchmarkError,
            match=naming("'answer batch=1 threads=2'", "exit code 1", "net.cfg"),
        ),
    ):
        process.order("answer", batch=1, threads=2)
