"""The leak checks of conftest.py can fail: on each kind of leak, and on nothing else."""

from pathlib import Path

import pytest

# The checks of this very suite, with less patience.
CONFTEST = (Path(__file__).parents[1] / "conftest.py").read_text() + "\nGRACE_S = 0.2\n"
IMPORTS = """
import mmap, os, socket, subprocess, threading
import zmq
KEPT = []
"""
SHARED = "fd = os.memfd_create('weights'); os.truncate(fd, 4096)"
LEAKS = {
    "thread": "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    "socket": "KEPT.append(socket.socket())",
    "memfd": SHARED,
    "mapping": f"{SHARED}; KEPT.append(mmap.mmap(fd, 4096)); os.close(fd)",
    "process": "KEPT.append(subprocess.Popen(['sleep', '60']))",
    "orphan": "subprocess.run(['sh', '-c', 'sleep 61 & exit'])",
    "zmq_socket": "KEPT.append(zmq.Context().socket(zmq.PAIR))",
    "zmq_context": "KEPT.append(zmq.Context())",
}
NAMED = {
    "thread": "thread * Thread-",
    "socket": "socket:",
    "memfd": "/memfd:weights",
    "mapping": "mapping * /memfd:weights",
    "process": "process * sleep 60",
    "orphan": "process * sleep 61",
    "zmq_socket": "anon_inode:?eventpoll?",
    "zmq_context": "anon_inode:?eventfd?",
}
CLEAN = {
    "joined": "thread = threading.Thread(target=int); thread.start(); thread.join()",
    "closed": "socket.socket().close()",
    "in_a_cycle": f"{SHARED}; cycle = [mmap.mmap(fd, 4096)]; cycle.append(cycle); os.close(fd)",
    "waited_for": "subprocess.run(['true'])",
    "ended": "subprocess.Popen(['true'])",
    "terminated": "context = zmq.Context(); context.socket(zmq.PAIR).close(); context.term()",
    "about_to_end": "threading.Timer(0.05, int).start()",
}


def run(pytester: pytest.Pytester, bodies: dict[str, str]) -> pytest.RunResult:
    tests = "".join(f"def test_{name}():\n    {body}\n" for name, body in bodies.items())
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(IMPORTS + tests)
    return pytester.runpytest_subprocess()


def test_each_kind_of_leak_fails_and_is_named(pytester: pytest.Pytester) -> None:
    result = run(pytester, LEAKS)
    result.assert_outcomes(passed=len(LEAKS), errors=len(LEAKS))
    for name, text in NAMED.items():
        result.stdout.fnmatch_lines([f"_* teardown of test_{name} _*", f"left behind: *{text}*"])


def test_what_was_cleaned_up_passes(pytester: pytest.Pytester) -> None:
    run(pytester, CLEAN).assert_outcomes(passed=len(CLEAN))


def test_a_failure_is_not_reported_twice(pytester: pytest.Pytester) -> None:
    run(pytester, {"fails": "opened = socket.socket(); assert not opened"}).assert_outcomes(
        failed=1
    )
