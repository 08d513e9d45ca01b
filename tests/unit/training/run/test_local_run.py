"""How long a run on this host waits for its processes."""

from pathlib import Path

import pytest

from dist_net.training.run.local_run import checkpoint_grace_s, with_port_of


@pytest.mark.parametrize(("size_bytes", "grace_s"), [(None, 30), (0, 30), (3 * 10**9, 630)])
def test_the_last_checkpoint_has_the_time_that_its_bytes_need_on_a_slow_disk(
    tmp_path: Path, size_bytes: int | None, grace_s: float
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    if size_bytes is not None:
        with checkpoint.open("wb") as file:
            file.truncate(size_bytes)  # which takes no room on the disk
    assert checkpoint_grace_s(checkpoint) == pytest.approx(grace_s)


@pytest.mark.parametrize(
    ("listen", "contact", "again"),
    [
        ("tcp://127.0.0.1:0", "tcp://127.0.0.1:40001", "tcp://127.0.0.1:40001"),
        ("tcp://0.0.0.0:0", "tcp://host:40001", "tcp://0.0.0.0:40001"),
        ("tcp://[::1]:0", "tcp://[::1]:40001", "tcp://[::1]:40001"),
        ("tcp://0.0.0.0:5550", "tcp://host:5550", "tcp://0.0.0.0:5550"),
        ("ipc:///run/server", "ipc:///run/server", "ipc:///run/server"),
    ],
)
def test_a_server_listens_again_where_workers_look_for_it(
    listen: str, contact: str, again: str
) -> None:
    assert with_port_of(listen, contact) == again
