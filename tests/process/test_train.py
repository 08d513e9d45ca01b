"""A run by the command line, from its start to what is left of it."""

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.run_options import RunOptions
from journaled import assert_each_sample_once

Start = Here = Callable[..., Any]
REPORTED = {
    *(
        "recipe",
        "run_dir",
        "checkpoint",
        "version",
        "epochs",
        "samples",
        "seconds",
        "samples_per_s",
    ),
    *("test_accuracy", "test_loss", "pushes_applied", "pushes_rejected", "duplicates_dropped"),
    *("gradients_refused", "staleness_mean", "staleness_max", "workers_joined", "workers_lost"),
    *("checkpoints_failed", "journal_failures", "samples_done_again", "warnings"),
    *("bytes_received_per_sample", "bytes_sent_per_sample"),
    *("consistency", "samples_per_update", "waiting_share"),
}


@pytest.mark.main_path
def test_a_run_is_reported_and_its_checkpoint_is_as_good_as_it_said(
    start: Start, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train = start("train", "digits", "--epochs", "4", "--run-dir", str(run), "--json")
    report = train.result()
    assert report.keys() == REPORTED
    *progress, summary, workers, directory, following = train.stderr.splitlines()
    # The run may be over before the second worker joins.
    assert workers == f"workers: {report['workers_joined']} joined, 0 lost"
    assert f"{report['test_accuracy']:.2%}" in summary
    assert directory.endswith(str(run))
    assert "evaluate" in following
    assert any("epoch" in each for each in progress)
    assert report["recipe"] == "digits"
    assert report["run_dir"] == str(run)
    assert report["samples"] == 4 * 1437
    assert report["consistency"] == "rounds"
    assert 1 < report["samples_per_update"] / 32 < 45
    assert report["test_accuracy"] > 0.7  # a chance of 0.1, and few epochs

    evaluate = start("evaluate", str(run), "--json")
    assert evaluate.result() == {
        "test_accuracy": report["test_accuracy"],
        "test_loss": report["test_loss"],
        "samples": 360,
    }
    assert f"{report['test_accuracy']:.2%}" in evaluate.stderr.splitlines()[-1]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [record for record in records if record["kind"] == "train"]
    assert [trained[0]["samples"] > 0, trained[-1]["samples"]] == [True, 4 * 1437]
    assert records[-1]["accuracy"] == report["test_accuracy"]
    names = {path.name for path in run.iterdir()}
    assert names >= {"checkpoint.safetensors", "metrics.jsonl", "options.json"}
    assert "recipe.py" not in names
    assert not [name for name in names if name.endswith(".partial")]
    logs = [path.read_text() for path in (run / "logs").glob("worker-*.log")]
    log = next(each for each in logs if "joined worker=" in each)  # one may have come too late
    assert log.index("updates_begun") < log.index("joined worker=")  # its code was loaded before


def test_only_a_resumed_run_continues_from_the_checkpoint_before_a_damaged_one(
    start: Start, refuses: Callable[..., None], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    start("train", "digits", "--epochs", "2", "--run-dir", str(run)).ends()
    newest = run / "checkpoint.safetensors"
    before = read_checkpoint(newest)
    write_checkpoint(newest, replace(before, version=before.version + 1), kept=3)
    write_checkpoint(run / f"checkpoint-version-{before.version}.safetensors", before)
    newest.write_bytes(newest.read_bytes()[:-100])
    image = tmp_path / "image.png"
    for command, *arguments in (
        ("evaluate",),
        ("predict", image),
        ("export", tmp_path / "a.npz"),
        ("serve", "--http", "127.0.0.1:0"),
    ):
        refuses(newest, command, run, *arguments)
    resumed = start("train", "--resume", "--run-dir", str(run), "--epochs", "3", "--json")
    assert resumed.result()["epochs"] == 3
    resumed.says(f"version {before.version:,}, is used")


def test_a_run_that_is_resumed_with_other_options_is_used_by_the_last_ones(
    start: Start, here: Here, tmp_path: Path
) -> None:
    """It begins with its best weights, slowly; the last weights are better."""
    run = tmp_path / "run"
    train, resume = ("train", "--run-dir", run, "--json"), ("--resume", "--epochs", "8")
    slow = "--learning-rate", "0.00001", "--local-steps", "8", "--average-decay", "0.9"
    begun = start(*train, "digits", "--epochs", "2", "--keep", "best", *slow).result()
    assert begun["checkpoint"] == str(run / "best.safetensors")
    fast = "--learning-rate", "0.002", "--local-steps", "auto", "--average-decay", "0"
    resumed = start(*train, *resume, "--keep", "last", "--clip-norm", "0", *fast).result()
    assert resumed["checkpoint"] == str(run / "checkpoint.safetensors")
    evaluated = here("evaluate", run, "--json")
    assert evaluated["test_accuracy"] == resumed["test_accuracy"] > 0.5 > begun["test_accuracy"]
    here("export", run, tmp_path / "last.safetensors")
    exported, kept = (
        load_file(file) for file in (tmp_path / "last.safetensors", run / "checkpoint.safetensors")
    )
    assert all((exported[name] == kept[name]).all() for name in exported)
    here("replay", run, "--json")
    again = start(*train, "--resume", "--epochs", "9", "--keep", "best").result()
    assert again["checkpoint"] == str(run / "best.safetensors")
    assert here("evaluate", run, "--json")["test_accuracy"] >= again["test_accuracy"] > 0.5


def test_an_interrupted_run_leaves_nothing_but_its_checkpoint_and_goes_on_from_there(
    start: Start, here: Here, counting: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    asked = ["train", counting, "--epochs", "100000", "--workers", "3", "--run-dir", str(run)]
    interrupted = start(*asked, "--json", packages=None)
    # More than a checkpoint holds the records of.
    interrupted.report(lambda report: len(report["workers"]) == 3 and report["samples"] > 80 * 256)
    assert len(interrupted.children) == 4
    assert list(interrupted.temporary.iterdir())

    interrupted.process.send_signal(signal.SIGINT)
    assert interrupted.ends() == 130
    says, _, command = interrupted.stderr.splitlines()[-1].partition("; resume with: ")
    assert says == "dist-net train: interrupted"
    go_on = shlex.split(command)[1:]
    assert go_on == ["train", "--resume", "--run-dir", str(run)]
    assert interrupted.stdout == ""
    assert (run / "training.png").exists()
    assert not interrupted.children
    assert not list(interrupted.temporary.iterdir())
    begun = assert_each_sample_once(run, 256)
    resumed = start(*go_on, "--epochs", str(begun + 5), "--json").result()
    assert resumed["samples"] == 256 * (begun + 5)
    assert resumed["workers_joined"] > 3
    assert assert_each_sample_once(run, 256) == begun + 5
    assert here("replay", run, "--json")["matches"]
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    recorded = np.array([0] + [each["samples"] for each in records if each["kind"] == "train"])
    assert np.diff(recorded).min() > 0  # none is there twice
    assert recorded[-1] == 256 * (begun + 5)


@pytest.mark.parametrize("resume", [["--resume"], ["--resume", "auto"]])
def test_a_run_that_ended_before_its_first_checkpoint_is_resumed_from_the_beginning(
    start: Start, resume: list[str], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.make()
    run.begin(RunOptions("digits", seed=5).to_json(), {})  # and then Ctrl-C
    train = start("train", *resume, "--epochs", "2", "--run-dir", str(run.path), "--json")
    train.says(rf"{run.path} .*version 0")
    assert train.result()["samples"] == 2 * 1437
    assert json.loads(run.options.read_text())["seed"] == 5


def test_a_worker_that_cannot_be_started_ends_the_run_with_the_command_that_resumes_it(
    start: Start, counting: str, tmp_path: Path
) -> None:
    log = tmp_path / "run" / "logs" / "worker-1.log"
    log.mkdir(parents=True)
    train = start("train", counting, "--epochs", "2", "--run-dir", str(tmp_path / "run"))
    assert train.ends() == 1
    [failure] = [line for line in train.stderr.splitlines() if line.startswith("dist-net train:")]
    message, _, command = failure.partition("; resume with: ")
    assert str(log) in message
    assert "Traceback" not in train.stderr
    log.rmdir()
    assert start(*shlex.split(command)[1:], "--json").result()["samples"] == 2 * 256


def test_a_joined_host_has_the_keys_for_the_state_and_is_told_once_why_the_run_ended(
    start: Start, counting: str, tmp_path: Path
) -> None:
    run = str(tmp_path / "run")
    server = start(
        *("parameter-server", counting, "--epochs", "100000", "--run-dir", run),
        *("--listen", "tcp://0.0.0.0:0"),
    )
    token = server.says(r"    echo (\w+) \| dist-net join\n")[1]
    status = shlex.split(server.says(r"its state: .* status (.*)")[1])
    assert start("status", *status, "--json").result()["state"] == "waiting"
    port = status[0].removeprefix("tcp://127.0.0.1:")  # the host's name may not resolve
    same_user = ["env", f"TMPDIR={server.temporary}"]
    for host in (socket.gethostname(), "127.0.0.1"):
        found = start("status", f"tcp://{host}:{port}", "--json", prefix=same_user)
        assert found.result()["state"] == "waiting"
    elsewhere = start("status", f"tcp://127.0.0.1:{port}")
    assert elsewhere.ends() == 1
    [said] = elsewhere.stderr.splitlines()
    # The server may close the connection before ZeroMQ has read that it uses keys.
    assert re.search(r"requires keys(: | \()pass --keys DIR", said)
    assert said.endswith(f"status tcp://127.0.0.1:{port} --keys RUN_DIRECTORY/keys/operator")

    joined = start("join", token, "--workers", "2", "--trust-recipe")
    address = joined.says(r"joining (tcp://\S+) with")[1]
    joined.says(r"epoch [\d.]+/100000, .* left: .* samples/s")  # without a terminal
    server.report(lambda report: report["samples"] > 256)
    same_host = ["env", f"TMPDIR={joined.temporary}"]
    assert start("status", address, "--json", prefix=same_host).result()["state"] == "training"
    server.process.send_signal(signal.SIGINT)
    assert server.ends() == 130
    assert joined.ends() == 1
    assert joined.stderr.count("SIGTERM") == 1
    assert f"parameter server on {socket.gethostname()}" in joined.stderr.splitlines()[-1]


def test_several_interrupts_lose_nothing_of_how_to_go_on(
    start: Start, counting: str, tmp_path: Path
) -> None:
    train = start("train", counting, "--epochs", "100000", "--run-dir", str(tmp_path / "run"))
    train.report(lambda report: report["samples"] > 256)
    server = train.children["server"]
    os.kill(server, signal.SIGSTOP)  # so that the command waits for it
    for _ in range(3):
        train.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            train.process.wait(0.1)
    os.kill(server, signal.SIGCONT)
    assert train.ends() == 130
    assert "--resume" in train.stderr.splitlines()[-1]


def test_an_interrupt_while_modules_are_imported_prints_no_traceback(tmp_path: Path) -> None:
    """Of a stand-in for the first module that takes time."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(600)\n"
    )
    command = subprocess.run(
        [sys.executable, "-P", "-m", "dist_net", "train"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        timeout=120,
    )
    assert (command.returncode, command.stdout, command.stderr) == (130, b"", b"")


def test_commands_are_shown_as_a_shell_takes_them(
    start: Start, counting: str, tmp_path: Path
) -> None:
    """As they are copied from the terminal, whatever is in a name."""
    odd = tmp_path / "it's [b]odd[/x] :boot:"
    odd.mkdir(parents=True)
    recipe, keys = odd / "recipe.py", odd / "keys"
    recipe.write_bytes(Path(counting).read_bytes())
    assert start("keys", "create", str(keys)).ends() == 0
    server = start(
        *("parameter-server", str(recipe), "--epochs", "2", "--listen", "tcp://127.0.0.1:0"),
        *("--keys", str(keys), "--run-dir", str(odd / "run")),
    )

    def taken_apart(command: str) -> list[str]:
        """The words of a command, whose program is found where the server was started."""
        program, *words = shlex.split(command)
        assert (tmp_path / "c1" / program).exists()
        return words

    worker = taken_apart(server.says(r"workers may join: (.* --connect tcp:.*)")[1])
    assert worker[:2] == ["worker", str(recipe)]
    assert start(*worker).ends() == 0
    assert server.ends() == 0
    *_, directory, following = server.stdout.splitlines()
    assert directory == f"run directory: {odd}/run"
    assert start(*taken_apart(following.removeprefix("next: "))).ends() == 0


@pytest.mark.main_path
def test_a_server_and_a_worker_by_hand(start: Start, tmp_path: Path) -> None:
    """The worker takes the recipe's name from the server."""
    run = tmp_path / "run"
    server = start(
        *("parameter-server", "digits", "--epochs", "2", "--listen", "tcp://127.0.0.1:0"),
        *("--run-dir", str(run), "--json"),
    )
    address = server.says(r"--connect (tcp://\S+)")[1]
    status = start("status", address, "--json").result()
    assert status["state"] == "waiting"
    assert status["recipe"] == "digits"

    worker = start("worker", "--connect", address, "--name", "by-hand")
    assert worker.ends() == 0
    report = server.result()
    assert report["samples"] == 2 * 1437
    assert report["workers_joined"] - report["workers_lost"] == 1


def test_workers_by_hand_are_interrupted_killed_and_told_that_the_run_was_interrupted(
    start: Start, counting: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # More than is ever done: however late the signals come, there is work left.
    server = start(
        *("parameter-server", counting, "--listen", "tcp://127.0.0.1:0", "--epochs", "100000"),
        *("--run-dir", str(run)),
    )

    def working(samples: int = 0) -> Any:
        worker = start("worker", counting, "--connect", server.address)
        server.report(lambda report: report["samples"] > samples)
        return worker

    worker = working()
    worker.process.send_signal(signal.SIGINT)
    assert worker.ends() == 130, worker.stderr
    assert "SIGINT" in worker.stderr
    assert "Traceback" not in worker.stderr
    before = server.report(lambda report: not report["workers"])
    assert before["workers_lost"] == 0  # who leaves is not lost
    working(before["samples"]).process.kill()
    server.says("no worker is left")
    before = server.report(lambda report: not report["workers"])
    assert before["workers_lost"] >= 1
    worker = working(before["samples"])
    server.process.send_signal(signal.SIGINT)
    assert server.ends() == 130, server.stderr
    assert worker.ends() == 130
    assert re.match("dist-net worker: .*SIGTERM", worker.stderr.splitlines()[-1])
    assert_each_sample_once(run, 256)
