"""How long a run on this host waits for its processes."""

from pathlib import Path

import pytest

from dist_net.training.run.local_run import checkpoint_grace_s


@pytest.mark.parametrize(("size_bytes", "grace_s"), [(None, 30), (0, 30), (3 * 10**9, 630)])
def test_the_last_checkpoint_has_the_time_that_its_bytes_need_on_a_slow_disk(
    tmp_path: Path, size_bytes: int | None, grace_s: float
) -> None:
    checkpoint = tmp_path / "checkpoint.safetensors"
    if size_bytes is not None:
        with checkpoint.open("wb") as file:
            file.truncate(size_bytes)  # which takes no room on the disk
    assert checkpoint_grace_s(checkpoint) == pytest.approx(grace_s)
