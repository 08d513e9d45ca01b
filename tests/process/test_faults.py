"""Processes that are killed and stopped in mid-run; the weights show that nothing was lost."""

import json
import os
import random
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dist_net.ground.checkpoint import read_checkpoint
from journaled import assert_each_sample_once
from naming import naming

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]

SAMPLES = 256
SILENCE_S = 10.0  # in which a lost worker is noticed: 1.5 s, and what a loaded machine adds


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Where the run directory will be."""
    return tmp_path / "run"


def assert_exact(run: Path, epochs: int) -> None:
    assert assert_each_sample_once(run, SAMPLES) == epochs


@pytest.fixture
def assert_goes_on_exactly(start: Start, here: Callable[..., Any], run: Path) -> Callable[[], None]:
    """Each sample is applied or left to do, and what is left of the epochs begun is done."""

    def check() -> None:
        epochs = assert_each_sample_once(run, SAMPLES)
        assert epochs > 1
        resume = "train", "--resume", "--run-dir", str(run), "--epochs", str(epochs), "--json"
        start(*resume).result()
        assert_exact(run, epochs)
        assert here("replay", run, "--json")["matches"]

    return check


def assert_noticed(run: Path, victim: str) -> None:
    """The server has counted out the victim, and nobody else, when it had been silent for long
    enough but not for longer."""
    log = (run / "logs" / "parameter-server.log").read_text()
    ((name, silent_s),) = re.findall(r"worker_lost .*name=(\S+) silent_s=(\S+)", log)
    assert name == victim
    assert float(silent_s) < SILENCE_S


def exit_codes(process_ids: Iterable[int]) -> dict[int, int]:
    """Return the exit codes of adopted processes that have ended, by their ids."""
    ended = [os.waitpid(process_id, os.WNOHANG) for process_id in process_ids]
    return {number: os.waitstatus_to_exitcode(status) for number, status in ended if number}


@pytest.mark.main_path
def test_a_worker_is_killed(start: Start, counting: str, run: Path) -> None:
    train = start("train", counting, "--epochs", "80", "--run-dir", str(run), "--json")
    victim = random.choice(["worker-0", "worker-1"])
    moment = random.randrange(SAMPLES, 30 * SAMPLES)
    print(f"{victim} is killed after {moment} samples")
    train.report(lambda report: len(report["workers"]) == 2 and report["samples"] > moment)
    os.kill(train.children[victim], signal.SIGKILL)
    report = train.result()

    assert re.search(rf"{victim}: .*code -9 .*restarting", train.stderr)
    assert_exact(run, 80)
    assert report["samples"] == 80 * SAMPLES
    assert report["workers_lost"] >= 1
    assert report["workers_joined"] - report["workers_lost"] == 2
    assert_noticed(run, victim)


@pytest.mark.main_path
def test_the_server_is_killed_and_another_one_goes_on_from_its_checkpoint(
    start: Start, counting: str, run: Path
) -> None:
    """Workers of this host and of another one keep their processes."""
    train = start(
        *("train", counting, "--epochs", "40", "--run-dir", str(run), "--json"),
        *("--checkpoint-every", "0.1", "--listen", "tcp://127.0.0.1:0"),
    )
    address = train.says(r"--connect (tcp://\S+)")[1]
    afar = start("worker", counting, "--connect", address, "--name", "afar")
    before = train.report(
        lambda report: len(report["workers"]) == 3 and report["samples"] > SAMPLES
    )
    children = train.children
    os.kill(children["server"], signal.SIGKILL)
    train.says(r"parameter-server: .*code -9 .*restarting")
    after = train.report(
        lambda report: report["term"] != before["term"] and len(report["workers"]) == 3
    )
    assert after["server_starts"] == 2
    assert {each["name"] for each in after["workers"]} == {"worker-0", "worker-1", "afar"}
    still = train.children
    assert still.pop("server") != children.pop("server")
    assert still == children

    assert train.result()["samples"] == 40 * SAMPLES
    assert_exact(run, 40)
    assert afar.ends() == 0
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    samples = [record["samples"] for record in records if record["kind"] == "train"]
    assert samples == sorted({*samples})


def test_the_server_is_killed_more_often_than_it_is_started_again(
    start: Start, counting: str, run: Path
) -> None:
    often = ("--checkpoint-every", "0.1", "--restarts", "1")
    train = start("train", counting, "--epochs", "1000", "--run-dir", str(run), *often)
    worker = start("worker", counting, "--connect", train.address, "--rejoin-timeout", "10")
    for starts in (1, 2):
        train.report(
            lambda report, starts=starts: (
                report["server_starts"] == starts
                and report["samples"] > SAMPLES
                and len(report["workers"]) == 3
            )
        )
        os.kill(train.children["server"], signal.SIGKILL)
        train.says(r"restarting")

    assert train.ends() == 1
    last = train.stderr.splitlines()[-1]
    assert re.match(r"dist-net train: parameter-server: .*code -9 ", last)
    assert last.endswith(f"dist-net train --resume --run-dir {run}")
    assert "Traceback" not in train.stderr
    assert not train.children
    assert not list(train.temporary.iterdir())
    read_checkpoint(run / "checkpoint.safetensors")
    assert worker.ends() == 1
    last = worker.stderr.splitlines()[-1]
    assert re.match(r"dist-net worker: .*ipc://\S+ .*\d s\b", last)
    assert "Traceback" not in worker.stderr


def test_a_worker_outlives_a_server_that_is_stopped_and_then_killed(
    start: Start, counting: str, run: Path
) -> None:
    """The server that takes its place goes on from the checkpoint, at the same address."""
    listen = ("--listen", "tcp://127.0.0.1:0", "--checkpoint-every", "0.1", "--restarts", "0")
    server = start("parameter-server", counting, "--epochs", "30", "--run-dir", str(run), *listen)
    address = server.says(r"--connect (tcp://\S+)")[1]
    worker = start("worker", counting, "--connect", address)
    server.report(lambda report: report["samples"] > SAMPLES)
    os.kill(server.children["server"], signal.SIGSTOP)
    worker.says(r"rejoining server=tcp://\S+ reason=.*\b\d+\.\d s")
    server.says("the parameter server does not answer")
    os.kill(server.children["server"], signal.SIGCONT)
    server.says("the parameter server answers again")
    before = server.report(lambda report: report["workers_joined"] >= 2)
    server.report(lambda report: report["samples"] > before["samples"])
    os.kill(server.children["server"], signal.SIGKILL)
    assert server.ends() == 1

    resumed = start(
        *("parameter-server", counting, "--resume", "auto", "--run-dir", str(run)),
        *("--listen", address, "--json"),
    )
    assert resumed.result()["samples"] == 30 * SAMPLES
    assert_exact(run, 30)
    assert worker.ends() == 0
    assert worker.stderr.count("rejoining") >= 2


def test_the_server_is_ended_from_outside(
    start: Start, counting: str, run: Path, assert_goes_on_exactly: Callable[[], None]
) -> None:
    train = start("train", counting, "--epochs", "1000", "--run-dir", str(run))
    train.report(lambda report: report["samples"] > SAMPLES)
    os.kill(train.children["server"], signal.SIGTERM)
    assert train.ends() == 130
    last = train.stderr.splitlines()[-1]
    assert re.search(
        rf"ended from outside; resume with: \S*dist-net train .*--run-dir {run}$", last
    )
    assert_goes_on_exactly()


def test_every_worker_is_killed(
    start: Start, counting: str, run: Path, assert_goes_on_exactly: Callable[[], None]
) -> None:
    once = ("--epochs", "1000", "--run-dir", str(run), "--restarts", "0")
    train = start("train", counting, *once)
    train.report(lambda report: len(report["workers"]) == 2 and report["samples"] > SAMPLES)
    for name in ("worker-0", "worker-1"):
        os.kill(train.children[name], signal.SIGKILL)
    assert train.ends() == 1
    last = train.stderr.splitlines()[-1]
    assert re.match(r"dist-net train: worker-[01]: it ended with code -9 \(log: ", last)
    assert_goes_on_exactly()


def assert_end_by_themselves(orphans: dict[str, int], eventually: Eventually) -> None:
    codes: dict[int, int] = {}

    def all_have_ended() -> bool:
        codes.update(exit_codes({*orphans.values()} - codes.keys()))
        return len(codes) == len(orphans)

    eventually(all_have_ended)
    for name, process_id in orphans.items():
        assert codes[process_id] == (0 if name == "server" else 130)


def test_a_joined_host_waits_for_the_command_that_was_killed_and_its_losses_are_counted(
    start: Start, counting: str, run: Path, eventually: Eventually
) -> None:
    """The command that resumes the run needs no option: it listens where it did, with a worker."""
    train = start(
        *("train", counting, "--workers", "1", "--epochs", "100000", "--run-dir", str(run)),
        *("--listen", "tcp://127.0.0.1:0", "--checkpoint-every", "1"),
    )
    token = train.says(r"    echo (\w+) \| dist-net join\n")[1]
    joined = start("join", token, "--workers", "2", "--trust-recipe")
    train.says(r": 2 workers joined\n")
    train.report(lambda report: report["samples"] > SAMPLES and report["checkpoint_version"] > 0)
    [worker] = [number for name, number in joined.children.items() if name != "fork-server"]
    os.kill(worker, signal.SIGSTOP)
    train.says(r": 2 workers lost: silent for \d+\.\d s\n")
    os.kill(worker, signal.SIGCONT)
    train.says(r": 2 workers back\n")
    before = train.report(lambda report: len(report["workers"]) == 2)
    orphans = {each: train.children[each] for each in ("server", "worker-0")}
    os.kill(train.process.pid, signal.SIGKILL)
    assert train.ends() == -signal.SIGKILL
    assert_end_by_themselves(orphans, eventually)
    joined.says("the workers try again")

    begun = assert_each_sample_once(run, SAMPLES)
    resumed = start(
        *("train", "--resume", "auto", "--run-dir", str(run), "--json"),
        *("--epochs", str(begun + 100)),
    )
    resumed.says(r"resuming with the run's --workers 1 --listen tcp://127\.0\.0\.1:\d+\n")
    resumed.says(r": \d workers joined\n")
    summary = resumed.result()
    assert joined.ends() == 0
    assert_exact(run, begun + 100)
    assert summary["workers_lost"] >= before["workers_lost"] >= 1
    assert summary["workers_joined"] >= before["workers_joined"] + 2
    counts = rf"workers: {summary['workers_joined']} joined, {summary['workers_lost']} lost\n"
    assert re.search(counts, resumed.stderr)


def test_a_run_is_one_commands_at_a_time_and_goes_on_as_soon_as_that_was_killed(
    start: Start,
    counting: str,
    run: Path,
    assert_goes_on_exactly: Callable[[], None],
    eventually: Eventually,
) -> None:
    train = start("train", counting, "--epochs", "100000", "--run-dir", str(run))
    train.report(lambda report: report["samples"] > SAMPLES)
    resume = ("train", "--resume", "--run-dir", str(run), "--json")
    for words in (resume, ("train", counting, "--run-dir", str(run))):
        second = start(*words)
        assert second.ends() == 2
        assert re.search(naming(run, f"process {train.process.pid}"), second.stderr)
    # A child that was started just now has no command line of its own yet.
    orphans = eventually(lambda: len(found := train.children) == 3 and found)
    train.process.kill()
    resumed = start(*resume)
    train.ends()
    assert_end_by_themselves(orphans, eventually)
    resumed.report(lambda report: report["samples"] > SAMPLES)
    resumed.process.send_signal(signal.SIGINT)
    assert resumed.ends() == 130
    assert_goes_on_exactly()


def test_the_command_itself_is_killed_at_its_start(
    start: Start, counting: str, run: Path, eventually: Eventually
) -> None:
    train = start("train", counting, "--epochs", "1000", "--run-dir", str(run))
    orphans = eventually(lambda: len(found := train.children) == 3 and found)
    train.process.kill()
    assert train.ends() == -signal.SIGKILL
    assert_end_by_themselves(orphans, eventually)
