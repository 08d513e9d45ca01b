"""A disk in memory: what a failing host loses, what a full disk refuses, where a process dies."""

from pathlib import Path

import numpy as np
import pytest

from dist_net.ground.files import replacing
from simulation.disk import ProcessKilledError, VirtualDisk

OLD, NEW = b"old" * 10, b"new" * 20
PATH = Path("run/checkpoint")


def disk(seed: int = 0) -> VirtualDisk:
    return VirtualDisk(np.random.default_rng(seed))


def write(disk: VirtualDisk, content: bytes) -> None:
    with replacing(PATH, disk) as partial:
        disk.write(partial, content)


def after_a_crash(seed: int, is_synced: bool) -> bytes:
    """What is left of a file of which the first part was synced."""
    own = disk(seed)
    file = own.append_to(PATH, 0)
    file.write(OLD)
    file.sync()
    own.sync(PATH.parent)
    file.write(NEW)
    if is_synced:
        file.sync()
    own.crash()
    return own.read(PATH)


def test_what_was_synced_is_there_after_a_crash_and_of_the_rest_a_part_that_may_be_torn() -> None:
    assert {after_a_crash(seed, is_synced=True) for seed in range(30)} == {OLD + NEW}
    left = {after_a_crash(seed, is_synced=False) for seed in range(60)}
    assert all(each.startswith(OLD) for each in left)
    assert len({len(each) for each in left}) > 10
    assert any(each[len(OLD) :].endswith(b"\0") for each in left)
    assert any(each[len(OLD) :] == NEW[: len(each) - len(OLD)] for each in left)


@pytest.mark.parametrize("seed", range(20))
def test_a_file_that_is_replaced_is_the_old_one_or_the_new_one_wherever_its_writer_dies(
    seed: int,
) -> None:
    own = disk(seed)
    write(own, OLD)
    own.kill_after = seed % 6
    try:
        write(own, NEW)
    except ProcessKilledError:
        own.kill_after = None
        own.crash()
        assert own.read(PATH) in (OLD, NEW)
    else:
        own.crash()
        assert own.read(PATH) == NEW
    own.kill_after = None
    write(own, NEW)
    assert own.read(PATH) == NEW
