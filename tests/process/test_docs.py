"""Every block of shell and Python in README and docs works.

The blocks of a page run in order, in one temporary directory, with `digits` in place of
`fashion-mnist`, loopback in place of the addresses of other hosts, free ports in place of fixed
ports, and `cp` in place of `scp`. `test_scripts.py` runs the scripts that install.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import zmq

from children import end_with_the_tests
from dist_net.cli import parse

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
HIDDEN_PACKAGES = ROOT / "tests" / "process" / "hidden_packages"
LANGUAGES = {"sh", "python", "text", "mermaid"}
LONG_RUNNING = {"serve", "watch", "parameter-server", "inference-worker"}
FIXED_PORTS = ("5555", "8000", "8002")
DEADLINE_S = 180  # of a loaded machine
# One interpreter runs all Python blocks of a page. Each line of its input is a block, as JSON.
INTERPRETER = """
import json, sys
for line in sys.stdin:
    exec(json.loads(line), globals())
    print("<end of a block>", flush=True)
"""


class Block(NamedTuple):
    """A code block of a page."""

    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    return [Block(*each) for each in found]


def title(page: Path) -> str:
    return str(page.relative_to(ROOT))


RUN = [page for page in PAGES if any(block.language in ("sh", "python") for block in blocks(page))]


@pytest.mark.main_path
@pytest.mark.parametrize("page", PAGES, ids=title)
def test_every_block_is_run_or_marked_as_output(page: Path) -> None:
    assert {block.language for block in blocks(page)} <= LANGUAGES


@pytest.mark.main_path
@pytest.mark.parametrize("page", PAGES, ids=title)
def test_the_files_that_a_page_names_are_there(page: Path) -> None:
    text = page.read_text()
    links = [page.parent / link for link in re.findall(r"\]\((?!http)([^)#]+)", text)]
    places = r"(?:dist_net|docs|examples|scripts|tests|workers|\.ci)"
    named = [ROOT / path for path in re.findall(rf"(?<![\w./]){places}/[\w./-]*\w", text)]
    assert [path for path in (*links, *named) if not path.exists()] == []


@pytest.mark.main_path
@pytest.mark.parametrize("page", PAGES, ids=title)
def test_a_command_within_a_sentence_is_one_that_there_is(page: Path) -> None:
    prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for line in re.findall(r"`dist-net ([a-z][^`]*)`", prose):
        assert parse(shlex.split(line)).command in line


@pytest.mark.main_path
def test_the_pages_of_runs_are_small_and_name_no_path_of_a_host() -> None:
    pages = [*(ROOT / "docs" / "learn" / "run_pages").glob("*.html")]
    assert len(pages) == 3
    for page in pages:
        assert page.stat().st_size <= 150_000
        assert not re.search(r"/(home|root|tmp)/", page.read_text())


@pytest.mark.main_path
def test_the_engines_modules_number_themselves_as_its_page_does() -> None:
    text = (ROOT / "docs" / "engine.md").read_text()
    modules = re.findall(r"^\d\. `(dist_net/autodiff/.*?\.py)`", text, re.MULTILINE)
    for number, module in enumerate(modules, 1):
        first = (ROOT / module).read_text().partition("\n")[0]
        assert first.startswith(f'"""The engine, {number} of {len(modules)}: ')


class Reader:
    """A reader who types the commands of a page in an empty directory."""

    def __init__(self, directory: Path, eventually: Callable[..., Any]) -> None:
        self.directory = directory
        self._eventually = eventually
        self._running: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._python: subprocess.Popen[str] | None = None
        self._ports = dict(zip(FIXED_PORTS, free_ports(len(FIXED_PORTS)), strict=True))
        (directory / "examples").symlink_to(ROOT / "examples")
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "XDG_STATE_HOME": str(directory / "state"),
        }

    def shell(self, text: str) -> None:
        """Run the lines of a block, one after the other."""
        for line in self._substituted(text).replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if not words or words[0] in (".", "pip"):
                continue
            if words[0].startswith("scripts/"):
                assert os.access(ROOT / words[0], os.X_OK)
            elif words[0] == "dist-net" and words[1] in LONG_RUNNING:
                self._start(words)
            else:
                self._run(re.sub(r"^scp (.*) [\w.]+:", r"cp \1 ", line))

    def python(self, text: str) -> str:
        """Save a block that begins with a file name; run any other. Return its output."""
        if named := re.match(r"# (\w+\.py)\n", text):
            (self.directory / named[1]).write_text(text)
            return ""
        if self._python is None:
            self._python = self._interpreter()
        assert self._python.stdin is not None
        assert self._python.stdout is not None
        self._python.stdin.write(json.dumps(self._substituted(text)) + "\n")
        self._python.stdin.flush()
        printed = ""
        while (line := self._python.stdout.readline()) != "<end of a block>\n":
            assert line, f"the block failed:\n{text}"
            printed += line
        return printed

    def _interpreter(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", INTERPRETER],
            cwd=self.directory,
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def leave(self) -> None:
        """End the processes that still run, the last first."""
        if self._python is not None:
            with self._python:  # ends with its input
                pass
        for name, process in reversed(self._running):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5 if name == "parameter-server" else 0)
            self._end(name, process)

    def _substituted(self, text: str) -> str:
        for port, free in self._ports.items():
            text = text.replace(f":{port}", f":{free}")
        text = re.sub(r"192\.0\.2\.\d+", "127.0.0.1", text)
        text = text.replace("fashion-mnist", "digits")
        return text.replace("[1, 28, 28]", "[1, 8, 8]").replace("[0] * 784", "[0] * 64")

    def _run(self, line: str) -> None:
        # Plots take a second of each run, so only commands with `--plot` draw.
        hidden = {} if "--plot" in line else {"PYTHONPATH": str(HIDDEN_PACKAGES)}
        done = subprocess.run(
            ["sh", "-c", line],
            cwd=self.directory,
            env=self._environment | hidden,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert '"error"' not in done.stdout, f"{line}\n{done.stdout}"

    def _start(self, words: list[str]) -> None:
        """Start a process in the background, and end the earlier process of the same command."""
        name = words[1]
        for running in [each for each in self._running if each[0] == name]:
            self._running.remove(running)
            self._end(*running)
        if name == "serve" and "--http" not in words:
            words = [*words, "--http", f"127.0.0.1:{self._ports['8000']}"]
        said = self.directory / f"{name}.output"
        with said.open("w") as output:
            process = subprocess.Popen(
                words,
                cwd=self.directory,
                env=self._environment,
                stdout=output,
                stderr=output,
                preexec_fn=end_with_the_tests,
            )
        self._running.append((name, process))
        sign = {"serve": "READY", "parameter-server": "--connect"}.get(name, "")

        def is_ready() -> bool:
            text = said.read_text()
            assert process.poll() is None, text
            return sign in text

        self._eventually(is_ready)

    def _end(self, name: str, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        code = process.wait(DEADLINE_S)
        # A signal during imports ends Python itself.
        assert code in (0, 130, -signal.SIGINT), (self.directory / f"{name}.output").read_text()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        context = stack.enter_context(zmq.Context())
        sockets = [stack.enter_context(context.socket(zmq.PULL)) for _ in range(count)]
        return [socket.bind_to_random_port("tcp://127.0.0.1") for socket in sockets]


@pytest.fixture
def reader(tmp_path: Path, eventually: Callable[..., Any]) -> Iterator[Reader]:
    reader = Reader(tmp_path, eventually)
    try:
        yield reader
    finally:
        reader.leave()


def needs_what_is_missing(code: str) -> bool:
    """Return whether the block imports pandas, which dist_net does not depend on, in vain."""
    return "import pandas" in code and find_spec("pandas") is None


@pytest.mark.parametrize("page", RUN, ids=title)
def test_what_a_page_says_to_type_works(page: Path, reader: Reader) -> None:
    if "curl " in page.read_text() and shutil.which("curl") is None:
        pytest.skip("no `curl` here")
    if "onnxruntime" in page.read_text() and find_spec("onnxruntime") is None:
        pytest.skip("ONNX Runtime is not installed")
    printed = ""
    for block in blocks(page):
        if block.language == "sh":
            reader.shell(block.text)
            printed = ""
        elif block.language == "python" and not needs_what_is_missing(block.text):
            printed = reader.python(block.text)
        elif block.language == "text" and printed:
            assert printed == block.text
            printed = ""
