"""``scripts/bench main-job``: the main job of two commits, in alternating runs.

The main job is ``dist-net train fashion-mnist`` with two workers. Single changes cost it too little
to be noticed; together they once cost a third of its speed. So compare with a commit of long ago
as well as with the last one. Both run with the packages that are installed for this checkout.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.errors import BenchmarkError

CHECKOUT = Path(__file__).parents[2]
COMMAND = ("train", "fashion-mnist", "--workers", "2", "--epochs", "20", "--json")
PAIRS = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("of main-job")
    group.add_argument(
        "--commits",
        nargs="+",
        default=["HEAD"],
        metavar="COMMIT",
        help="the commit to compare with, and the commit to measure (default: HEAD, and the files "
        "of this checkout)",
    )
    group.add_argument(
        "--pairs", type=int, default=PAIRS, metavar="N", help=f"of runs (default: {PAIRS})"
    )


def measure(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Return ``results`` and ``ratios``, the second commit's samples/s to the first's.

    Raises BenchmarkError if a commit cannot be checked out or its run fails.
    """
    base, *rest = arguments.commits
    if len(rest) > 1 or arguments.pairs < 1:
        raise BenchmarkError(
            f"got {len(rest) + 1} commits and {arguments.pairs} pairs; expected one or two "
            f"commits, and one pair or more"
        )
    measured: tuple[list[dict[str, Any]], ...] = [], []
    with checked_out(base) as first, checked_out(*rest) as second:
        for pair in range(1, arguments.pairs + 1):
            for directory, runs in zip((first, second), measured, strict=True):
                runs.append(run_of(directory, seed=pair))
            rates = [runs[-1]["samples_per_s"] for runs in measured]
            say(f"pair {pair}: {rates[0]:,.0f} and {rates[1]:,.0f} samples/s")
    names = base, *(rest or ["this checkout"])
    ratios = [
        new["samples_per_s"] / old["samples_per_s"] for old, new in zip(*measured, strict=True)
    ]
    return {
        "results": [
            {"commit": name} | {key: round(median(run[key] for run in runs), 4) for key in runs[0]}
            for name, runs in zip(names, measured, strict=True)
        ],
        "ratios": {
            "samples_per_s": [round(ratio, 3) for ratio in ratios],
            "median": round(median(ratios), 3),
        },
    }


@contextmanager
def checked_out(commit: str | None = None) -> Iterator[Path]:
    """A directory with the files of a commit; None: this checkout, as it is."""
    if commit is None:
        yield CHECKOUT
        return
    with TemporaryDirectory() as directory:
        archive = subprocess.run(
            ["git", "-C", str(CHECKOUT), "archive", commit], capture_output=True, check=False
        )
        if archive.returncode:
            raise BenchmarkError(
                f"cannot check out {commit!r}: {archive.stderr.decode().strip()}; expected a "
                f"commit of this repository"
            )
        subprocess.run(["tar", "-x", "-C", directory], input=archive.stdout, check=True)
        yield Path(directory)


def run_of(directory: Path, seed: int) -> dict[str, float]:
    """Run the main job of the code in a directory; return its figures and its CPU time."""
    before = os.times()
    with TemporaryDirectory() as run:
        options = ["--seed", str(seed), "--run-dir", f"{run}/run"]
        done = subprocess.run(
            [sys.executable, "-P", "-m", "dist_net", *COMMAND, *options],
            env=os.environ | {"PYTHONPATH": str(directory)},
            cwd=run,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise BenchmarkError(f"the run of {directory} failed: {done.stderr.strip()[-2000:]}")
    after = os.times()
    report = json.loads(done.stdout.splitlines()[-1])
    cpu_s = after.children_user + after.children_system
    cpu_s -= before.children_user + before.children_system
    kept = {key: report[key] for key in ("samples_per_s", "staleness_mean", "test_accuracy")}
    return kept | {"cpu_us_per_sample": 1e6 * cpu_s / report["samples"]}
