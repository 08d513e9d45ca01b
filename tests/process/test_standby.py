"""Hosts that are lost, and the standbys that continue their runs. Each host has its own name."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import dist_net
from dist_net.ground.checkpoint import read_checkpoint
from dist_net.nets.observer import Observer
from dist_net.nets.run_directory import RunDirectory
from dist_net.wire.messages import Follow
from dist_net.wire.security import OPERATOR, load_peer_keys
from dist_net.wire.token import JoinToken
from dist_net.wire.token_exchange import join_by_token
from dist_net.wire.transport import ClientSocket
from drawn_images import draw_shapes
from journaled import assert_each_sample_once

SAMPLES = 256

Start = Callable[..., Any]
Eventually = Callable[[Callable[[], Any]], Any]


def on(host: str) -> list[str]:
    """Return the prefix that runs a command on a host of this name; root is required for that."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return []
    return ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', host]


def signal_all(command: Any, number: signal.Signals) -> None:
    """Signals the command first, or it would replace a child that is killed."""
    for process_id in [command.process.pid, *command.child_ids]:
        os.kill(process_id, number)


def lose(command: Any) -> None:
    """The host is lost, with its disk."""
    signal_all(command, signal.SIGKILL)
    command.process.wait()
    shutil.rmtree(command.temporary.parent)


def leave(joined: Any, server: Any, after: str = "") -> None:
    """Interrupt the workers of the third host once they have joined this server."""
    server.says(f"{after}third: 1 worker joined")
    joined.process.send_signal(signal.SIGINT)
    assert joined.ends() == 130
    # A busy machine ends it before it leaves; then the server misses it.
    server.says(f"{after}third: 1 worker (left|lost)")


def directory_of(command: Any, name: str = "run") -> Path:
    return command.temporary.parent / name  # type: ignore[no-any-return]


def access_of(server: Any) -> tuple[str, Path]:
    """The address of the run that the host serves, and an operator's keys."""
    port, keys = server.says(r"its state: .*dist-net status tcp://\S+:(\d+) --keys (\S+)").groups()
    return f"tcp://127.0.0.1:{port}", server.temporary.parent / keys


def observing(server: Any) -> Observer:
    """An observer of the run that the host serves."""
    address, keys = access_of(server)
    return Observer(address, load_peer_keys(keys, OPERATOR))


def token_of(server: Any, what: str = "run there") -> JoinToken:
    """The token that the server's host has printed for workers, or for a standby."""
    return JoinToken.parse(server.says(rf"{what}.*\n\s+echo (\S+) \|")[1])


@pytest.fixture
def train(start: Start, counting: str) -> Start:
    """Starts a run on a host of this name."""

    def begin(host: str, *arguments: str, recipe: str = counting) -> Any:
        given = "--run-dir", "run", "--workers", "1", "--json", *arguments
        listen = "--listen", "tcp://0.0.0.0:0", "--contact", "127.0.0.1", "--takeover-after", "3"
        return start("train", recipe, *listen, *given, prefix=on(host))

    return begin


@pytest.fixture
def stand_by(start: Start, tmp_path: Path) -> Start:
    """Starts a standby of a run on a host of this name."""

    def join(host: str, server: Any, *arguments: str, token: str = "") -> Any:
        file = tmp_path / f"token-{host}"
        file.write_text(token or token_of(server, "run instead").text)
        given = "--token-file", str(file), "--trust-recipe", "--run-dir", "run", *arguments
        return start("join", *given, "--contact", "127.0.0.1", "--json", prefix=on(host))

    return join


def test_a_run_goes_on_when_its_host_is_lost_with_its_disk(
    train: Start,
    stand_by: Start,
    start: Start,
    here: Callable[..., Any],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    first = train("first", "--epochs", "60", "--keep", "best")
    first.says("epoch .*test loss")
    os.kill(first.children["worker-0"], signal.SIGSTOP)  # the run waits for the standby
    second = stand_by("second", first, "--workers", "0")
    eventually((directory_of(second) / "checkpoint.safetensors").exists)
    token = first.says(r"run there:\n\s+echo (\S+) \|")[1]
    join = "join", token, "--trust-recipe", "--workers", "1"
    third = [*on("third"), "env", f"XDG_CACHE_HOME={tmp_path / 'cache'}"]
    leave(start(*join, prefix=third), first)
    os.kill(first.children["worker-0"], signal.SIGCONT)
    second.says("epoch .*test loss")
    whole = shutil.ignore_patterns("*.partial")  # files that the command is writing
    shutil.copytree(directory_of(first), tmp_path / "run", ignore=whole)
    os.kill(second.children["server"], signal.SIGKILL)  # restarted, it hears no server
    lose(first)
    second.says("this host continues the run")
    # The token of the lost host leads to its successor.
    leave(start(*join, prefix=third), second, "(?s)this host continues.*")

    # Without workers the run waits, while a process is restarted and the first host returns.
    os.kill(second.children["server"], signal.SIGKILL)
    second.says("(?s)restarting it.*restarting it")
    resume = "train", "--resume", "auto", "--run-dir", str(tmp_path / "run"), "--json"
    returned = start(*resume, prefix=on("first"))
    returned.says("the run continues at .*-term-2")
    copy = RunDirectory(tmp_path / "run-term-2")
    eventually(copy.checkpoint.exists)
    returned.says("epoch .*test loss")
    lose(second)

    result = returned.result()
    assert result["run_dir"] == str(copy.path)
    assert result["samples"] == 60 * SAMPLES
    assert assert_each_sample_once(copy.path, SAMPLES) == 60
    here("replay", copy.path)
    records = [(each["kind"], each["samples"]) for each in copy.read_metrics()]
    assert sorted(set(records)) == sorted(records)
    trained = [samples for kind, samples in records if kind == "train"]
    assert max(later - former for former, later in pairwise([0, *trained])) < 8 * SAMPLES
    assert copy.best.exists()


LARGE = """
from dist_net import Recipe
from dist_net.nn import Dense, Flatten, Rescale, Sequential, relu
network = Sequential(Rescale(), Flatten(), Dense(20_000, relu), Dense(10))
recipe = Recipe(network=network, dataset="digits", input_shape=(8, 8), epochs=3, optimizer="adam")
"""
"""1.5 million parameters: a copy takes longer than some rounds."""


def test_a_run_ends_once_its_standby_has_the_last_version(
    train: Start,
    stand_by: Start,
    here: Callable[..., Any],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    recipe = tmp_path / "large.py"
    recipe.write_text(LARGE)
    first = train("first", recipe=str(recipe))
    first.says("1 worker joined")
    os.kill(worker := first.children["worker-0"], signal.SIGSTOP)  # the run waits for the standby
    second = stand_by("second", first, "--workers", "0")
    eventually((directory_of(second) / "checkpoint.safetensors").exists)
    os.kill(worker, signal.SIGCONT)
    results = [each.result() for each in (first, second)]
    measured = [here("evaluate", directory_of(each), "--json") for each in (first, second)]
    assert measured[0] == measured[1]
    for command, result in zip((first, second), results, strict=True):
        file = directory_of(command) / "checkpoint.safetensors"
        assert result["version"] == read_checkpoint(file).version
        assert result["test_loss"] == pytest.approx(measured[0]["test_loss"], rel=1e-6)
    assert results[0]["samples"] == results[1]["samples"] == 3 * 1437


def test_a_standby_without_the_last_version_reports_what_it_has(
    train: Start, stand_by: Start, eventually: Eventually
) -> None:
    first = train("first", "--epochs", "60")
    second = stand_by("second", first, "--workers", "0")
    copy = directory_of(second) / "checkpoint.safetensors"
    with observing(first) as observer:
        eventually(lambda: [each["has_copy"] for each in observer.status()["standbys"]] == [True])
    too_small = copy.stat().st_size - 1
    resource.prlimit(second.children["server"], resource.RLIMIT_FSIZE, (too_small, too_small))
    assert "second, a standby, lacks the last version" in " ".join(first.result()["warnings"])
    assert second.ends() == 1
    assert "test loss" not in second.stdout
    version = read_checkpoint(copy).version
    second.says(f"version .* has not arrived(.|\\n)*holds version {version:,}; resume with")


def test_a_standby_without_a_copy_waits_aloud_and_not_for_ever(
    train: Start, stand_by: Start, eventually: Eventually
) -> None:
    first = train("first", "--epochs", "100000")
    second = stand_by("second", first, "--workers", "0", "--rejoin-timeout", "1")
    server = eventually(lambda: second.children.get("server"))
    os.kill(server, signal.SIGSTOP)
    first.says("1 worker joined")
    lose(first)
    os.kill(server, signal.SIGCONT)
    second.says("no answer from .*this standby tries again for 1 s")
    assert second.ends() == 1
    assert "no copy of the run has arrived" in second.stderr


def test_a_host_that_returns_joins_the_run_that_went_on_without_it(
    train: Start, stand_by: Start, start: Start, eventually: Eventually
) -> None:
    first = train("first", "--epochs", "100000", "--checkpoint-every", "1000")
    second = stand_by("second", first, "--workers", "1")
    os.kill(eventually(lambda: second.children.get("worker-0")), signal.SIGSTOP)
    eventually((directory_of(second) / "checkpoint.safetensors").exists)
    signal_all(first, signal.SIGSTOP)
    second.says("this host continues the run")
    second.says("second: 1 worker joined")  # another one, which knows no former server
    os.kill(second.children["server"], signal.SIGKILL)
    second.says("restarting it")

    kept = directory_of(first)
    files = {each: each.read_bytes() for each in kept.glob("*") if each.is_file()}
    signal_all(first, signal.SIGCONT)
    first.says(r"the run continues at tcp://127.0.0.1:\d+, on second: .* from version [\d,]+\.")
    first.says("this host joins it, as a standby with 1 worker")
    eventually((directory_of(first, "run-term-2") / "checkpoint.safetensors").exists)
    second.says("first: 1 worker joined")
    for path in ("checkpoint.safetensors", "journal", "owner"):
        assert files[kept / path] == (kept / path).read_bytes()

    first.process.send_signal(signal.SIGINT)
    assert first.ends() == 130
    resume = "train", "--resume", "auto", "--run-dir", str(kept)
    again = start(*resume, "--contact", "127.0.0.1", prefix=on("first"))
    again.says(r"this host joins it, .* copies it to \S+/run-term-2\n")
    again.says("epoch .*test loss")
    again.process.send_signal(signal.SIGINT)
    assert again.ends() == 130

    with observing(second) as observer:
        eventually(lambda: not observer.status()["standbys"])
        assert observer.status()["majority_warning"] is None
    second.process.send_signal(signal.SIGINT)
    assert second.ends() == 130


def test_standbys_end_with_the_run_and_with_their_keys(
    train: Start, stand_by: Start, start: Start, here: Callable[..., Any], eventually: Eventually
) -> None:
    first = train("first", "--epochs", "100000")
    second = stand_by("second", first, "--workers", "1")
    eventually((directory_of(second) / "checkpoint.safetensors").exists)
    first.process.send_signal(signal.SIGINT)
    assert first.ends() == 130
    second.says("the run was ended: the parameter server on first was stopped")
    assert second.ends() != 0
    assert not (directory_of(second) / "owner").exists()

    # No standby is left that could continue the run, so the first host needs no majority.
    run = directory_of(first)
    resume = "train", "--resume", "--run-dir", str(run)
    again = start(*resume, prefix=on("first"))
    again.says("epoch .*test loss")
    third = stand_by("third", again, "--workers", "0")
    eventually((directory_of(third) / "checkpoint.safetensors").exists)
    [revoked] = (run / "keys" / "standbys").glob("*third*.key")
    here("keys", "revoke", run, revoked.stem)
    third.says("dist-net join: .*this key is no longer admitted|its keys were revoked")
    assert third.ends() != 0
    assert "this host continues" not in second.stderr + third.stderr
    assert not (directory_of(third) / "owner").exists()
    again.report(lambda report: not report["standbys"] and report["majority_warning"] is None)

    token = JoinToken.parse(again.says(r"run there:\n\s+echo (\S+) \|")[1])
    with ClientSocket(*join_by_token(token)) as worker:
        worker.send(Follow("third", "tcp://127.0.0.1:1", 0, 0, 0, 0, 0, 1, 0, 0, 0.0, 0.0))
        answer = worker.receive(10.0)
    assert "role worker may not send Follow" in answer.reason


def test_the_tuning_on_a_folder_goes_on_where_a_copy_of_the_folder_is(
    train: Start,
    stand_by: Start,
    here: Callable[..., Any],
    eventually: Eventually,
    tmp_path: Path,
) -> None:
    photos, base, copy = (tmp_path / name for name in ("photos", "base", "copy"))
    draw_shapes(photos, 12)
    dist_net.train(photos, base="none", epochs=1, run_dir=base, quiet=True)
    shutil.copytree(photos, copy)
    first = train("first", "--base", str(base), "--fine-tune", "30", recipe=str(photos))
    first.says("1 worker joined")
    os.kill(first.children["worker-0"], signal.SIGSTOP)  # the run waits for the standby
    second = stand_by("second", first, "--workers", "1", "--data", str(copy))
    assert first.stderr.index("head: trained") < first.stderr.index("run instead")
    os.kill(eventually(lambda: second.children.get("worker-0")), signal.SIGSTOP)
    eventually((directory_of(second) / "checkpoint.safetensors").exists)
    with observing(first) as observer:
        assert len(observer.status()["standbys"]) == 1
    lose(first)
    shutil.rmtree(photos)
    second.says("this host continues the run")

    result, run = second.result(), directory_of(second)
    assert "fine-tuning: on the same" in second.stderr
    report = json.loads((run / "report.json").read_text())
    assert report["accuracy"] == result["test_accuracy"]
    assert 20 < assert_each_sample_once(run, report["images"]["train"]) <= 30
    here("replay", run)
    assert here("evaluate", run, "--json")["test_accuracy"] == result["test_accuracy"]
    found = here("predict", run, copy / "circle" / "000.jpg", "--json")["predictions"]
    assert {each["label"] for each in found} == {"circle", "square", "triangle"}
