"""The scripts on a machine that has a python3 and nothing else, and installs in no time.

The scripts and the shell are the real ones. The python3 they find is a stand-in that keeps a
record, so that no network is needed; `scripts/test` in a fresh clone tries the real thing.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60
ON_EVERY_CORE = "--numprocesses auto --dist worksteal"
TOOLS = ["cat", "chmod", "cksum", "cp", "dirname", "id", "mkdir", "mktemp", "rm", "sleep", "tail"]
# What $DO says happens to an installation: it fails, hangs, or waits until the gate opens.
PYTHON = f"""#!/bin/sh
case "$*" in
*ensurepip*) [ -z "$NO_VENV" ] ;;
*version_info*) [ -z "$TOO_OLD" ] ;;
*"import pip"*) [ -z "$NO_VENV" ] ;;
"-m venv "*)
    echo venv >>"$RECORD"
    mkdir -p "$3/bin"
    cp "$0" "$3/bin/python" ;;
"-m pip install "*)
    echo install >>"$RECORD"
    echo "Collecting a-package"
    trap 'kill $!; exit 1' INT
    [ "$DO" != hang ] || {{ sleep 60 & echo >"$STARTED"; wait; }}
    [ "$DO" != wait ] || {{ echo >"$STARTED"; read -r _ <"$GATE"; }}
    [ "$DO" != fail ] || {{ echo "no such package" >&2; exit 1; }}
    for program in dist-net pytest ruff mypy mkdocs; do
        printf '#!/bin/sh\\necho "%s $*"; pwd\\n' $program >"${{0%/*}}/$program"
        chmod +x "${{0%/*}}/$program"
    done ;;
*) exec "{sys.executable}" "$@" ;;
esac
"""
UV = """#!/bin/sh
echo "uv $1" >>"$RECORD"
case $1 in
venv) exec python3 -m venv "$5" ;;
pip) exec "$4" -m pip install . ;;
esac
"""


class Machine:
    """A checkout, and a PATH on which only a few programs are found."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.checkout = home / "a checkout"
        self.programs = home / "bin"
        self.processes: list[subprocess.Popen[str]] = []
        self.record = home / "record"
        self.gate, self.started = home / "gate", home / "started"
        self.environment = {
            "PATH": str(self.programs),
            "RECORD": str(self.record),
            "GATE": str(self.gate),
            "STARTED": str(self.started),
        }
        shutil.copytree(ROOT / "scripts", self.checkout / "scripts")
        shutil.copytree(ROOT / ".ci", self.checkout / ".ci")
        shutil.copy(ROOT / "pyproject.toml", self.checkout)
        (self.checkout / "docs").mkdir()
        shutil.copy(ROOT / "docs/architecture.md", self.checkout / "docs")
        self.programs.mkdir()
        self.record.touch()
        os.mkfifo(self.gate)
        os.mkfifo(self.started)
        for tool in TOOLS:
            (self.programs / tool).symlink_to(str(shutil.which(tool)))
        self.add("python3", PYTHON)

    def add(self, name: str, program: str) -> None:
        path = self.programs / name
        # Never through a link: what it leads to is the machine's own program.
        path.unlink(missing_ok=True)
        path.write_text(program)
        path.chmod(0o755)

    def start(self, script: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [self.checkout / script, *arguments],
            env=self.environment | variables,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.processes.append(process)
        return process

    def stop(self) -> None:
        """Ends what a failed test has left running, and closes every pipe."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run(self, script: str, *arguments: str, **variables: str) -> tuple[int, str, str]:
        """The exit code, and what was printed on stdout and on stderr."""
        process = self.start(script, *arguments, **variables)
        printed, told = process.communicate(timeout=DEADLINE_S)
        return process.returncode, printed, told

    def await_installation(self) -> None:
        """Returns when the stand-in has begun to install."""
        descriptor = os.open(self.started, os.O_RDONLY | os.O_NONBLOCK)
        try:
            assert select.select([descriptor], [], [], DEADLINE_S)[0]
        finally:
            os.close(descriptor)

    def open_gate(self) -> int:
        """Lets a waiting installation go on; gives the descriptor to close when it has."""
        descriptor = os.open(self.gate, os.O_RDWR)
        os.write(descriptor, b"\n")
        return descriptor

    def done(self) -> list[str]:
        """What the stand-ins were asked to do since the last time this was called."""
        lines = self.record.read_text().splitlines()
        self.record.write_text("")
        return lines


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    yield machine
    machine.stop()


def test_launch_makes_an_environment_and_trains(machine: Machine) -> None:
    code, printed, told = machine.run("scripts/launch", "--workers", "2")
    assert (code, printed) == (0, f"dist-net train --workers 2\n{machine.home}\n")
    assert [line.split()[:2] for line in told.splitlines()] == [
        ["launch:", "making"],
        ["launch:", "installing"],
    ]
    assert "installing dist_net[fast,plots] " in told  # what training needs, and no more
    assert machine.done() == ["venv", "install"]


def test_other_dependencies_or_another_place_are_installed_anew(machine: Machine) -> None:
    machine.run("scripts/launch")
    with (machine.checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    machine.run("scripts/launch")
    assert machine.done() == ["venv", "install", "install"]
    machine.checkout = machine.checkout.rename(machine.home / "elsewhere")
    machine.run("scripts/launch")
    assert machine.done() == ["install"]


def test_an_environment_whose_python_is_gone_is_made_anew(machine: Machine) -> None:
    machine.run("scripts/launch")
    (machine.checkout / ".venv/bin/python").unlink()
    assert machine.run("scripts/launch")[0] == 0
    assert machine.done() == ["venv", "install", "venv", "install"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_installation_is_begun_anew(machine: Machine, end: int) -> None:
    process = machine.start("scripts/launch", DO="hang")
    machine.await_installation()
    os.killpg(process.pid, end)
    process.communicate(timeout=DEADLINE_S)
    assert process.returncode != 0
    assert machine.run("scripts/launch")[0] == 0
    assert machine.done() == ["venv", "install", "venv", "install"]


def test_a_long_installation_shows_what_it_is_at(machine: Machine) -> None:
    machine.add("sleep", f"#!/bin/sh\nexec {shutil.which('sleep')} 0.05\n")
    process = machine.start("scripts/launch", DO="wait")
    machine.await_installation()
    assert process.stderr is not None
    assert any(line == "launch: ... Collecting a-package\n" for line in process.stderr)
    gate = machine.open_gate()
    assert process.wait(DEADLINE_S) == 0
    os.close(gate)


def test_of_two_at_once_one_installs(machine: Machine) -> None:
    first = machine.start("scripts/launch", DO="wait")
    machine.await_installation()
    second = machine.start("scripts/launch")
    assert second.stderr is not None
    assert "waiting for another" in second.stderr.readline()
    gate = machine.open_gate()
    assert second.wait(DEADLINE_S) == first.wait(DEADLINE_S) == 0
    os.close(gate)
    assert machine.done() == ["venv", "install"]


@pytest.mark.parametrize(
    ("program", "words"),
    [("apt-get", "run: sudo apt-get install python3-venv"), ("true", "venv and ensurepip")],
)
def test_a_python_without_venv_is_told_what_helps(
    machine: Machine, program: str, words: str
) -> None:
    machine.add(program, "#!/bin/sh\nexit 1\n")
    code, printed, told = machine.run("scripts/launch", NO_VENV="1")
    assert (code, printed) == (2, "")
    assert words in told
    assert told.count("\n") == 1


def test_uv_stands_in_for_venv(machine: Machine) -> None:
    machine.add("uv", UV)
    assert machine.run("scripts/launch", NO_VENV="1")[0] == 0
    assert machine.done() == ["uv venv", "venv", "uv pip", "install"]


def test_a_python_that_is_too_old_or_missing_is_named(machine: Machine) -> None:
    code, _, told = machine.run("scripts/launch", TOO_OLD="1")
    version = ".".join(map(str, sys.version_info[:3]))
    assert (code, told.count("\n")) == (2, 1)
    assert f"needs Python 3.11 or newer as python3, found Python {version}" in told
    (machine.programs / "python3").unlink()
    code, _, told = machine.run("scripts/launch")
    assert (code, told.count("\n")) == (2, 1)
    assert "found none" in told


@pytest.mark.parametrize(
    ("option", "packages"),
    [("-x", ["iproute2", "chromium"]), ("--all", ["iproute2", "darknet", "chromium"])],
)
def test_the_suite_runs_in_the_checkout_and_says_what_it_will_skip(
    machine: Machine, option: str, packages: list[str]
) -> None:
    code, printed, told = machine.run("scripts/test", option)
    assert (code, printed) == (0, f"pytest {ON_EVERY_CORE} {option}\n{machine.checkout}\n")
    assert f"the system packages {' '.join(packages)}" in told.splitlines()[0]
    assert re.findall(r"here \(package (\w+)\)", told) == packages


def test_what_the_suite_needs_of_the_system_is_installed_by_root(machine: Machine) -> None:
    machine.add("apt-get", '#!/bin/sh\necho "$*" >>"$RECORD"\n')
    machine.add("id", "#!/bin/sh\necho 0\n")
    machine.run("scripts/test", "--all")
    done = machine.done()
    assert "-q -y install iproute2" in done
    assert "-q -y install darknet" in done
    assert "-q -y install chromium" in done


@pytest.mark.parametrize("has_venv", [True, False])
def test_launch_installs_nothing_in_the_system_even_as_root(
    machine: Machine, has_venv: bool
) -> None:
    machine.add("apt-get", '#!/bin/sh\necho "apt-get $*" >>"$RECORD"\n')
    machine.add("id", "#!/bin/sh\necho 0\n")
    code, _, told = machine.run("scripts/launch", **({} if has_venv else {"NO_VENV": "1"}))
    assert code == (0 if has_venv else 2), told
    assert machine.done() == (["venv", "install"] if has_venv else [])


def test_check_runs_everything_in_turn(machine: Machine) -> None:
    printed = machine.run("scripts/check")[1].splitlines()
    tools = ["ruff check", "ruff format --check", "mypy ", "mkdocs build --quiet", "pytest --all"]
    assert printed[::2] == tools
    (machine.checkout / ".venv/bin/mypy").write_text("#!/bin/sh\nexit 1\n")
    code, rest, _ = machine.run("scripts/check")
    assert (code, rest.splitlines()[::2]) == (1, ["ruff check", "ruff format --check"])
