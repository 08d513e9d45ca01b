"""Start and end the processes of a cluster: threads, logs, signals, exit codes."""

import ctypes
import fcntl
import gc
import logging
import math
import os
import resource
import signal
import stat
import sys
import threading
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from types import FrameType

import numpy  # noqa: F401 - its BLAS must be loaded before it is limited
from threadpoolctl import threadpool_limits

from dist_net.errors import DistNetError
from dist_net.processes.token_arguments import own_words

logger = logging.getLogger(__name__)

READY = "READY"
LOADING = "LOADING"
STANDBY = "STANDBY"
"""What a standby prints once it follows a run; it is READY when it serves it."""
REPORT_EVERY_S = 1.0
LACKS = "LACKS"
"""What a server prints at its end, with the name of each standby that lacks the last version."""

FAILED = "FAILED"
MAX_DESCRIPTORS = 65_536
PARENT_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1  # prctl(2)
KEPT_BYTES = 1 << 30  # larger than any message
MAX_LOG_BYTES = 8 << 20
LINES_BETWEEN_CHECKS = 256  # of the log's size

# Parameters of mallopt(3)
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def entry_point(
    add_arguments: Callable[[ArgumentParser], None],
    run: Callable[[Namespace], int],
    words: Sequence[str] | None = None,
    kept_bytes: int = KEPT_BYTES,
) -> int:
    """Run a process's module with its command line, or ``words``, and return the exit code.

    The process has one BLAS thread and logs to stderr. An error of this project is printed on
    stdout as a line, which the parent process reads.
    """
    gc.freeze()  # collections skip the modules from now on, also the last, which takes 60 ms
    use_threads(1)
    raise_descriptor_limit()
    keep_freed_memory(kept_bytes)
    words_of_a_line = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(level=logging.INFO, format=words_of_a_line, handlers=[BoundedLog()])
    # Pillow warns of each oddity in an image, which would fill the log and Python's own record.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    try:
        parser = ArgumentParser()
        add_arguments(parser)
        return run(parser.parse_args(own_words() if words is None else words))
    except DistNetError as error:
        logger.error("%s", error)
        sys.stdout.write(f"{FAILED} {error}\n")  # at once: another thread may report
        sys.stdout.flush()
        return error.exit_code
    finally:
        # Ignore further SIGTERMs: the parent's death may be signalled twice.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class BoundedLog(logging.StreamHandler):  # type: ignore[type-arg]
    """Log to stderr. If that is a file opened for appending, as a child's is, bound its size.

    A file of more than ``max_bytes`` is cut to the newest half of that. Terminals, pipes and files
    that a shell has opened for writing are left alone.
    """

    def __init__(self, max_bytes: int = MAX_LOG_BYTES) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._lines = 0

    def emit(self, record: logging.LogRecord) -> None:
        super().emit(record)
        self._lines += 1
        if self._lines % LINES_BETWEEN_CHECKS == 0:
            with suppress(OSError):  # a system without /proc
                self._shorten()

    def _shorten(self) -> None:
        descriptor = self.stream.fileno()
        status = os.fstat(descriptor)
        appends = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_APPEND
        if not (stat.S_ISREG(status.st_mode) and appends and status.st_size > self._max_bytes):
            return
        self.flush()
        # By the descriptor: the file may have been renamed.
        with Path(f"/proc/self/fd/{descriptor}").open("rb") as file:
            file.seek(-self._max_bytes // 2, os.SEEK_END)
            newest = file.read().partition(b"\n")[2]
        os.ftruncate(descriptor, 0)
        os.write(descriptor, newest)


class StartReports(AbstractContextManager["StartReports"]):
    """Report on stdout every second that this process is loading, until it is ready.

    The parent process then knows that this one is alive, however long loading takes. As a context,
    it reports nothing after the block.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._stdout = sys.stdout  # a recipe's output is redirected meanwhile
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._report, name="start-reports", daemon=True)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._is_over.set()
        self._thread.join()

    def loads(self, what: str) -> None:
        self._what = what

    def ready(self, words: str = "") -> None:
        """Report READY and ``words``, and nothing more."""
        self.close()
        print(f"{READY} {words}".rstrip(), flush=True)

    def _report(self) -> None:
        while not self._is_over.wait(REPORT_EVERY_S):
            self._stdout.write(f"{LOADING} {self._what}\n")
            self._stdout.flush()


def raise_descriptor_limit() -> None:
    """Raise the limit of open files and connections as far as the system permits."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:  # macOS has a second limit
            logger.info("descriptor_limit_kept limit=%d reason=%s", soft, error)


def limit_memory(more_bytes: float, *, is_final: bool = False) -> None:
    """Let this process reserve ``more_bytes`` beside its memory; infinity removes the limit.

    A limit that ``is_final`` cannot be raised. Without Linux's /proc it has no effect.
    """
    limit = hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    with suppress(OSError):
        if more_bytes < math.inf:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
            limit = pages * resource.getpagesize() + int(more_bytes)
    limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit if is_final else hard))


def keep_freed_memory(kept_bytes: int = KEPT_BYTES) -> None:
    """Let glibc reuse up to ``kept_bytes`` of the memory of freed messages.

    By default the kernel provides each large block anew, with a page fault for every 4 KiB. With
    407 kB each way over loopback TCP, a push and pull takes 1.1 ms by default, and 0.6 ms with this
    setting. Other C libraries are not changed.
    """
    library = ctypes.CDLL(None)
    if not (sys.platform.startswith("linux") and hasattr(library, "mallopt")):
        return
    for parameter in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD):
        if library.mallopt(parameter, kept_bytes) != 1:
            logger.warning("mallopt_refused parameter=%d", parameter)


def use_threads(count: int) -> None:
    """Limit NumPy's BLAS: without a limit two processes on two cores run 30 times slower."""
    threadpool_limits(count)


def stop_on_signals(
    stop: Callable[[str], None],
    parent: int | None = None,
    orphaned: Callable[[str], None] | None = None,
) -> None:
    """Call ``stop`` with a reason when this process is interrupted or terminated.

    With ``parent``, the parent's process id, also call it, or ``orphaned``, when the parent ends. A
    second interrupt ends this process at once; a second SIGTERM does not, since a service manager
    and the parent may both send it.
    """

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        is_ending = parent is not None and process_state(parent) in ("Z", "X")
        if parent is not None and (is_ending or os.getppid() != parent):
            (orphaned or stop)("the process that started this one is gone")
        else:
            stop(f"{signal.Signals(number).name} received")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handle)
    if parent is not None:
        terminate_after(parent)


def process_state(process_id: int) -> str:
    """Return the letter of proc_pid_stat(5); "" if there is none, or without Linux's /proc."""
    with suppress(OSError):
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def terminate_after(parent: int) -> None:
    """Terminate this process by SIGTERM when its parent ends, or has ended already.

    Linux sends it when the thread that started this process ends: let the main thread start it.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "prctl") and library.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM)) == 0:
        if os.getppid() != parent:  # the parent ended before the call
            signal.raise_signal(signal.SIGTERM)
        return

    def poll() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=poll, name="parent-watch", daemon=True).start()
