"""What an actor of Ray does on its node, without Ray."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_net.processes.launcher import Given, ProcessSpec
from dist_net.processes.ray_keeper import ProcessKeeper, Seen, ServerPlace

Eventually = Callable[[Callable[[], Any]], Any]

SERVER = ServerPlace("there", "ipc:///near", "tcp://192.0.2.1:5555")
MODULE = """
import sys, time
from pathlib import Path
print(*sys.argv[3:], flush=True)
print("a" * 4000, file=sys.stderr, flush=True)
while not Path(sys.argv[3], "gate").exists():
    time.sleep(0.01)
sys.stderr.truncate(0)
print("anew", file=sys.stderr, flush=True)
"""
ARGUMENTS = (Given.RUN_DIRECTORY, Given.SERVER, Given.KEYS)


@pytest.fixture
def keeper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessKeeper]:
    (tmp_path / "module_on_ray.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = ProcessKeeper("here", "127.0.0.1", {"worker.key": b"a key"})
    yield made
    made.close()


def heard(keeper: ProcessKeeper) -> list[Seen]:
    """All that is told until the end."""
    told = [keeper.watch()]
    while told[-1].exit_code is None:
        told.append(keeper.watch())
    return told


def test_a_worker_is_told_where_things_are_and_its_outputs_are_copied(
    keeper: ProcessKeeper,
) -> None:
    keeper.start(ProcessSpec("worker", "module_on_ray", ARGUMENTS), SERVER, {"recipe.py": b"1"})
    first = keeper.watch()
    while not (first.said and first.logged):
        more = keeper.watch()
        first = more._replace(said=first.said + more.said, logged=first.logged + more.logged)
    run, server, keys = map(Path, first.said.decode().split())
    assert str(server) == str(Path(SERVER.beyond))
    assert (run / "recipe.py").read_bytes() == b"1"
    assert (keys / "worker.key").read_bytes() == b"a key"
    assert (keys / "worker.key").stat().st_mode & 0o077 == 0
    (run / "gate").touch()
    told = heard(keeper)
    assert (told[-1].exit_code, told[-1].process_id) == (0, first.process_id)
    assert [each.logged for each in told if each.is_shortened] == [b"anew\n"]
    assert not run.exists()


def test_what_is_killed_is_told_by_its_signal(keeper: ProcessKeeper) -> None:
    keeper.start(ProcessSpec("worker", "module_on_ray", ARGUMENTS), SERVER, {})
    keeper.signal(signal.SIGKILL)
    assert heard(keeper)[-1].exit_code == -signal.SIGKILL


def test_what_a_server_leaves_in_a_private_directory_is_in_its_last_report(
    keeper: ProcessKeeper, tmp_path: Path
) -> None:
    files = {"journal": b"12", "checkpoint.safetensors": b"3", "options.json": b"{}", "gate": b""}
    spec = ProcessSpec("parameter-server", "module_on_ray", ARGUMENTS, is_server=True)
    keeper.start(spec, SERVER, files)
    left = heard(keeper)[-1].left
    assert list((left or {}).items()) == [("journal", b"12"), ("checkpoint.safetensors", b"3")]
    keeper.start(spec, SERVER, {})  # it finds them again after a restart
    assert heard(keeper)[-1].left == left
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    keeper.start(spec, SERVER, str(tmp_path))
    told = heard(keeper)
    assert b"".join(each.said for each in told).split()[0].decode() == str(tmp_path)
    assert told[-1].left is None
