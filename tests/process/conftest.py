"""Real processes of the command line: started, watched, and all ended when a test is over."""

import contextlib
import fcntl
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

import dist_net
from children import end_with_the_tests
from dist_net.cli import main
from dist_net.errors import NoAnswerError
from dist_net.nets.observer import NO_RECORDS, Observer
from drawn_images import draw_shapes

HIDDEN_PACKAGES = Path(__file__).parent / "hidden_packages"
# What a loaded machine may take; a test that passes does not wait for it.
DEADLINE_S = 120.0


def wait_until(holds: Callable[[], Any]) -> Any:
    """Call the function until it returns a true value, and return the value."""
    deadline = time.monotonic() + DEADLINE_S
    while not (answer := holds()):
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s"
        time.sleep(0.02)
    return answer


class Command:
    """A running ``dist-net COMMAND``, whose output is written to files in its directory.

    ``prefix`` is a command that runs it, such as one that enters a network namespace. ``packages``
    is a directory in front of the installed packages, by default without the drawing of a run,
    which takes a second of CPU; None changes nothing.
    """

    def __init__(
        self,
        directory: Path,
        arguments: Sequence[str],
        prefix: Sequence[str] = (),
        packages: Path | None = HIDDEN_PACKAGES,
    ) -> None:
        self._stdout, self._stderr = directory / "stdout", directory / "stderr"
        self.temporary = directory / "t"
        self.temporary.mkdir(parents=True)
        environment = os.environ | {
            "TMPDIR": str(self.temporary),
            "XDG_STATE_HOME": str(directory / "state"),
        }
        if packages is not None:
            environment["PYTHONPATH"] = str(packages)
        with self._stdout.open("w") as stdout, self._stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-P", "-m", "dist_net", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=directory,
                env=environment,
                preexec_fn=end_with_the_tests,
            )

    @property
    def stdout(self) -> str:
        """The text that it has printed on stdout."""
        return self._stdout.read_text()

    @property
    def stderr(self) -> str:
        """The text that it has printed on stderr."""
        return self._stderr.read_text()

    def says(self, pattern: str) -> re.Match[str]:
        """Waits until it says this on stderr."""

        def found() -> re.Match[str] | None:
            has_ended = self.process.poll() is not None
            complete_lines, _, _ = self.stderr.rpartition("\n")
            match = re.search(pattern, complete_lines)
            assert match or not has_ended, self.stderr
            return match

        match: re.Match[str] = wait_until(found)
        return match

    def ends(self) -> int:
        """Waits until it has ended; gives the exit code."""
        return self.process.wait(DEADLINE_S)

    def result(self) -> Any:
        """Waits until it has ended well; gives the JSON object, which is all of stdout."""
        assert self.ends() == 0, self.stderr
        return json.loads(self.stdout)

    @property
    def address(self) -> str:
        """Where a local worker or an observer may connect to its server."""
        return self.says(r"--connect (ipc://\S+)")[1]

    def report(self, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Waits for a report of the server's that is like this."""

        def matching() -> dict[str, Any] | None:
            try:
                report = observer.status(NO_RECORDS)  # they would be most of it, at each request
            except NoAnswerError:  # on a loaded machine another server takes long to start
                return None
            return report if holds(report) else None

        # Its server may be killed and started again meanwhile.
        wait = {"while_waiting": self._require_running, "nobody_s": DEADLINE_S}
        with Observer(self.address, **wait) as observer:
            found: dict[str, Any] = wait_until(matching)
        return found

    def _require_running(self, _: float = 0.0) -> None:
        assert self.process.poll() is None, self.stderr

    @property
    def children(self) -> dict[str, int]:
        """The process ids of its server, workers and model readers, by their names.

        Those that were forked have the command line of the process that forks, and a name.
        """
        names = {}
        for process_id in self.child_ids:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                about = Path(f"/proc/{process_id}")
                words = (about / "cmdline").read_text(errors="replace").split("\0")
                if "dist_net.training.run.parameter_server_process" in words:
                    names["server"] = process_id
                elif "dist_net.serving.gateway.fork_server_process" in words:
                    called = (about / "comm").read_text().strip()
                    is_forked = called.startswith(("worker-", "reader-"))
                    names[called if is_forked else "fork-server"] = process_id
                elif "--name" in words:
                    names[words[words.index("--name") + 1]] = process_id
        return names

    @property
    def child_ids(self) -> list[int]:
        """The process ids of all its children, of those too that were started just now."""
        found = []
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                parent = stat.read_text().rpartition(")")[2].split()[1]
                if parent == str(self.process.pid):
                    found.append(int(stat.parent.name))
        return found


@pytest.fixture
def counting() -> str:
    """The path of the recipe whose weights count how often each sample was applied."""
    return str(Path(__file__).parents[1] / "recipes" / "counting.py")


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any]], Any]:
    """Call the function until it returns a true value, and return the value."""
    return wait_until


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Starts a command; those that still run when the test is over are killed."""
    commands: list[Command] = []

    def start_command(*arguments: str, **options: Any) -> Command:
        directory = tmp_path / f"c{len(commands)}"  # short: sockets lie below
        commands.append(Command(directory, arguments, **options))
        return commands[-1]

    yield start_command
    for command in commands:
        if command.process.poll() is None:
            # The command first, or it would replace a child that is killed.
            for process_id in [command.process.pid, *command.child_ids]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process_id, signal.SIGKILL)
        command.process.wait()


@pytest.fixture
def ordinary_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A command sets up a process that is its own; this one gets its settings back."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
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
) -> Callable[..., None]:
    """Check that a command prints one line that contains this pattern, and leaves no file."""
    directory = tmp_path / "here"
    directory.mkdir()
    monkeypatch.chdir(directory)
    monkeypatch.setattr("tempfile.tempdir", str(directory))

    def check(says: str, *arguments: Any, exit_code: int = 2) -> None:
        code = exit_code_of(main, list(map(str, arguments)))
        stdout, stderr = capsys.readouterr()
        assert re.fullmatch(f"dist-net[^:]*: .*{says}.*\n", stderr), stderr
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
def here(
    ordinary_process: None,  # noqa: ARG001
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Any]:
    """Run a command in this process, which takes no start; return the JSON object that it prints.

    For commands that look at what processes have left; that they work as processes is tested too.
    """

    def run_command(*arguments: Any) -> Any:
        code = main(list(map(str, arguments)))
        stdout, stderr = capfd.readouterr()
        assert code == 0, stderr
        return json.loads(stdout) if "--json" in arguments else None

    return run_command


def made_once(path: Path, make: Callable[[Path], object]) -> Path:
    """Have the first of pytest's processes that needs a directory make it for all of them."""
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (made := path.with_suffix(".made")).exists():
            make(path)
            made.touch()
    return path


@pytest.fixture(scope="session")
def common(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of all of pytest's processes; tests do not change what is in it."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if hasattr(request.config, "workerinput") else own


@pytest.fixture(scope="session")
def photos(common: Path) -> Path:
    def draw(root: Path) -> None:
        draw_shapes(root, 12)
        (root / "circle" / "broken.jpg").write_bytes(b"no image")

    return made_once(common / "photos", draw)


@pytest.fixture(scope="session")
def base(common: Path, photos: Path) -> Path:
    """A run of a small net, whose features need no weights that are installed apart."""

    def train(run: Path) -> None:
        dist_net.train(photos, base="none", epochs=1, run_dir=run, quiet=True)

    return made_once(common / "base", train)


@pytest.fixture(scope="session")
def trained(common: Path, photos: Path, base: Path) -> Path:
    """A run that tells the photos apart by the features of the base."""

    def train(run: Path) -> None:
        dist_net.train(photos, base=str(base), run_dir=run, quiet=True)

    return made_once(common / "trained", train)
