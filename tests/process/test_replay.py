"""``dist-net replay``: a run of processes is computed again, and compared with what it was."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dist_net.ground.checkpoint import read_checkpoint
from dist_net.processes.equipment import PORTABLE, environment_of
from dist_net.training.server.journal import read_journal
from dist_net.training.server.journal_records import sha256_of

Start = Here = Callable[..., Any]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the run directory will be."""
    return tmp_path / "run"


@pytest.mark.main_path
def test_a_run_is_replayed_and_stops_at_any_version(start: Start, here: Here, run: Path) -> None:
    start("train", "digits", "--epochs", "3", "--run-dir", str(run), "--json").result()
    trained = read_checkpoint(run / "checkpoint.safetensors")
    replayed = start("replay", str(run), "--json")
    version = trained.version
    assert replayed.result() == {
        "version": version,
        "weights_sha256": sha256_of(trained.weights).hex(),
        "matches": True,
    }
    assert f"{version} updates" in replayed.stderr

    halfway = here("replay", run, "--to", version // 2, "--json")
    assert halfway["version"] == version // 2
    left = read_checkpoint(run / f"replay-{halfway['version']}.safetensors")
    assert sha256_of(left.weights).hex() == halfway["weights_sha256"]

    options = run / "options.json"
    options.write_text(options.read_text().replace('"optimizer": null', '"optimizer": "sgd"'))
    with_another_rule = start("replay", str(run), "--json")
    assert with_another_rule.ends() == 1
    assert '"matches": false' in with_another_rule.stdout
    with_another_rule.says(rf"at version {version}; .* is 0\.")


WITHOUT_AVX2 = environment_of(PORTABLE)["NPY_DISABLE_CPU_FEATURES"] + " FMA3 AVX2 X86_V3"
OTHER_KERNELS = (
    "env",
    "OPENBLAS_CORETYPE=Nehalem",  # which no processor with AVX has by itself
    f"NPY_DISABLE_CPU_FEATURES={WITHOUT_AVX2}",  # exp, log and tanh round in another way
    "NUMBA_CPU_NAME=nehalem",
)
"""Each library computes as on a processor of 2008."""


def test_a_run_of_other_kernels_is_not_replayed(start: Start, run: Path) -> None:
    start("train", "digits", "--epochs", "2", "--run-dir", str(run), "--json").result()
    replayed = start("replay", str(run), prefix=OTHER_KERNELS)
    assert replayed.ends() == 2
    replayed.says(r"computes with openblas \S+ \(Nehalem\); expected openblas \S+ \((?!Nehalem)")


CONVOLUTION = """
from dist_net import Recipe, autodiff, nn

recipe = Recipe(
    network=nn.Sequential(
        nn.Rescale(),
        nn.Lambda(lambda images: autodiff.reshape(images, (*images.shape, 1))),
        nn.Conv2D(8, 3),
        nn.BatchNorm(),
        nn.Lambda(nn.relu),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Dense(16, nn.tanh),
        nn.LayerNorm(),
        nn.Dense(10),
    ),
    dataset="digits",
    input_shape=(8, 8),
    epochs=2,
)
"""


def test_portable_bits_are_those_of_any_kernels(start: Start, run: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "convolution.py"
    recipe.write_text(CONVOLUTION)
    portable = ("--bits", "portable", "--run-dir", str(run), "--workers", "0")
    train = start("train", str(recipe), *portable, "--listen", "tcp://0.0.0.0:0", "--json")
    token = train.says(r"echo (\w+) \| dist-net join\n")[1]
    start("join", token, "--workers", "1", "--trust-recipe", prefix=OTHER_KERNELS)
    train.result()
    weights = sha256_of(read_checkpoint(run / "checkpoint.safetensors").weights).hex()
    for prefix in ((), OTHER_KERNELS):
        result = start("replay", str(run), "--json", prefix=prefix).result()
        assert result == {"version": result["version"], "weights_sha256": weights, "matches": True}
    assert len(read_journal(run / "journal").kernels) == 1


def test_a_worker_without_the_portable_bits_of_its_run_is_refused(start: Start, run: Path) -> None:
    train = start("train", "digits", "--bits", "portable", "--run-dir", str(run), "--workers", "0")
    worker = start("worker", "digits", "--connect", train.address)
    assert worker.ends() == 2
    worker.says("'dist-net train' or 'join'")
