"""What holds for every test: a leaked thread, socket, process or shared-memory segment fails it.

Read from /proc, so that what native code leaves behind (ZeroMQ's sockets and contexts) counts too.
What a failed test leaves is not held against it, since its traceback keeps its frames alive.
"""

import contextlib
import ctypes
import gc
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from hashlib import sha256
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import zmq
from hypothesis import settings
from threadpoolctl import threadpool_limits

# How long an example takes depends on what else the machine does.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

pytest_plugins = ["pytester"]

# Without bytecode each of the hundreds of processes that are started compiles the package anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# Tests put Unix sockets below their directories, at paths that have at most 107 bytes (unix(7)).
MAX_TEMPORARY_BYTES = 12
if len(os.fsencode(tempfile.gettempdir())) > MAX_TEMPORARY_BYTES:
    os.environ["TMPDIR"] = tempfile.tempdir = "/tmp"

# Requested ends may take time: of a worker whose server has just ended, of a ZeroMQ context that
# closes its sockets. A test without leaks does not wait.
GRACE_S = 10.0
TESTS = Path(__file__).parent
WHOLE_COMMANDS = "process", "oracle"
SHARED_MEMORY = ("/memfd:", "/dev/shm/")
PR_SET_CHILD_SUBREAPER = 36
FAILED = pytest.StashKey[bool]()
# Longer bytes are told apart by a digest: pytest prints them whole, and a diff of them.
SHOWN_BYTES = 100

Leaks = dict[str, str]

# The mappings that failed tests left. Nothing else is mapped, so a test need not list the earlier
# ones: that takes 2 ms of each of thousands, in a process with a few large libraries.
LEFT_MAPPED: Leaks = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run the thorough tests as well")
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes as well")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {item for item in items if is_left_out(item, config)}
    config.hook.pytest_deselected(items=[*left_out])
    items[:] = [item for item in items if item not in left_out]
    # Processes that share the tests have to call them the same.
    unsteady = [item.nodeid for item in items if re.search(r" at 0x[0-9a-f]+>", item.nodeid)]
    assert not unsteady, f"named by an address, give ids: {unsteady[0]}"


def is_left_out(item: pytest.Item, config: pytest.Config) -> bool:
    """Whether a test is not of this run.

    Without --all, and if no file or test is named, these are left out: what is marked thorough, and
    what starts whole commands or other programs, except for one real run of each main path.
    """
    if item.get_closest_marker("slow"):
        return not config.getoption("--slow")
    if config.getoption("--all") or config.args_source is not pytest.Config.ArgsSource.TESTPATHS:
        return False
    if item.path.relative_to(TESTS).parts[0] in WHOLE_COMMANDS:
        return item.get_closest_marker("main_path") is None
    return item.get_closest_marker("thorough") is not None


def pytest_assertrepr_compare(op: str, left: object, right: object) -> list[str] | None:
    """Show long bytes, such as weights, by their digests, in collections too."""
    shown = [with_digests(each) for each in (left, right)]
    return None if shown == [left, right] else [f"{shown[0]} {op} {shown[1]}"]


def with_digests(value: object) -> object:
    if isinstance(value, bytes) and len(value) > SHOWN_BYTES:
        return f"<{len(value):,} bytes, SHA-256 {sha256(value).hexdigest()[:12]}>"
    if type(value) in (list, tuple):
        return type(value)(map(with_digests, value))
    if type(value) is dict:
        return {key: with_digests(each) for key, each in value.items()}
    return value


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """With ``--numprocesses auto``: two more than cores, since tests of processes often wait."""
    return 2 + len(os.sched_getaffinity(0))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Disable garbage collection meanwhile; later collections skip the objects that exist by then.

    All of them stay. Collecting tests takes 5.1 s of CPU in each process, with collections 6.7 s.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.collect()
        gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def adopt_orphans() -> None:
    """A grandchild whose parent has died becomes this process's child, and so can be found."""
    assert ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


@pytest.fixture(scope="session", autouse=True)
def trust_no_recipe_of_the_user(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The record of trusted recipes, of these tests and the processes that they start, is new."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def let_interrupts_through() -> None:
    """Each test begins with Python's handlers: a command in this process leaves its own.

    A shell's background job ignores SIGINT, and so would every process that a test starts.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def limit_blas_threads() -> None:
    """Several pytest processes share the cores, so one BLAS thread each is faster."""
    threadpool_limits(1, user_api="blas")


@pytest.fixture(scope="session", autouse=True)
def start_thread_of_lent_frames() -> None:
    """PyZMQ's one thread for memory that it sends without a copy stays until the process ends."""
    zmq.Frame(b"lent", copy=False)


@pytest.fixture(scope="session", autouse=True)
def start_resource_tracker() -> None:
    """The one process by which Python's process pools clean up stays until this process ends."""
    resource_tracker.ensure_running()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.fixture(autouse=True)
def leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compares what the process holds before and after the test and its fixtures."""
    before = threads() | processes() | descriptors() | LEFT_MAPPED
    yield
    left = leaks_since(before)
    # Python would start another without a word, and the next test would be blamed for it.
    for name in before.keys() - processes().keys():
        if "resource_tracker" in before[name]:
            pytest.fail(f"ended by this test: {name} {before[name]}", pytrace=False)
    LEFT_MAPPED.update({name: what for name, what in left.items() if name.startswith("mapping ")})
    for name in left:
        if name.startswith("process "):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(name.split()[1]), signal.SIGKILL)
    if left and not request.node.stash.get(FAILED, False):
        pytest.fail("left behind: " + "; ".join(sorted(map(" ".join, left.items()))), pytrace=False)


def leaks_since(before: Leaks) -> Leaks:
    """Return new resources that the test still holds after ``GRACE_S``."""
    deadline = time.monotonic() + GRACE_S
    while (left := not_in(before)) and time.monotonic() < deadline:
        gc.collect()
        time.sleep(0.01)
    return left


def not_in(before: Leaks) -> Leaks:
    return {name: what for name, what in resources().items() if name not in before}


def resources() -> Leaks:
    """Everything that can leak, by a name that is its own."""
    return threads() | processes() | descriptors() | mappings()


def threads() -> Leaks:
    """Python's threads."""
    return {f"thread {thread.native_id}": thread.name for thread in threading.enumerate()}


def processes() -> Leaks:
    """Children that run; one that has ended holds nothing any more."""
    # A glob takes longer, and this runs twice for each of thousands of tests.
    tasks = Path("/proc/self/task").iterdir()
    listed = " ".join(read(task / "children") for task in tasks).split()
    running = [Path("/proc", child) for child in listed if is_running(Path("/proc", child))]
    return {f"process {path.name}": read(path / "cmdline").replace("\0", " ") for path in running}


def is_running(process: Path) -> bool:
    """Whether it has not ended; an ended process only waits for its parent.

    One that was started just now has no command line yet, like one that has ended.
    """
    # The state follows the name, which may hold anything.
    state = [*read(process / "stat").rpartition(")")[2].split(), "X"][0]
    return state not in "ZX"


def descriptors() -> Leaks:
    """Open sockets, shared-memory files, and what ZeroMQ's sockets and contexts wait on."""
    found = {}
    for descriptor in os.scandir("/proc/self/fd"):
        target = link(descriptor.path)
        if target.startswith(("socket:", "anon_inode:[event", *SHARED_MEMORY)):
            found[f"descriptor {descriptor.name} {target}"] = ""
    return found


def mappings() -> Leaks:
    """Shared memory that is mapped, whether its descriptor is open or not."""
    maps = read(Path("/proc/self/maps"))
    if not any(place in maps for place in SHARED_MEMORY):
        return {}
    lines = [line.split(maxsplit=5) for line in maps.splitlines()]
    shared = [line for line in lines if len(line) == 6 and line[5].startswith(SHARED_MEMORY)]
    return {f"mapping {line[0]}": line[5] for line in shared}


def read(path: Path) -> str:
    """A file of /proc, empty if its process has just ended."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def link(path: str) -> str:
    """Where a link of /proc leads, empty if it has just gone."""
    try:
        return os.readlink(path)  # noqa: PTH115 - a tenth of the time, for each descriptor and test
    except FileNotFoundError:
        return ""
