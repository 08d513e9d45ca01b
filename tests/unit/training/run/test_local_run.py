"""How long a run on this host waits for its processes, and which run it may follow."""

from pathlib import Path

import pytest

from dist_net.errors import DatasetError
from dist_net.nets.observer import Following
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.run_directory import RunDirectory
from dist_net.processes.terminal import plain_console
from dist_net.training.run.local_run import (
    LocalRunSettings,
    RunHost,
    checkpoint_grace_s,
    with_port_of,
)
from dist_net.training.run.run_options import RunOptions
from dist_net.training.run.standby_run import run_on
from dist_net.training.run.training_progress import TrainingProgress
from dist_net.wire.transport import ServerAccess
from naming import naming


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


@pytest.mark.parametrize(("part", "named"), [("data", "the same dataset"), ("recipe", "recipe")])
def test_a_standby_with_another_recipe_or_other_data_is_refused(
    tmp_path: Path, part: str, named: str
) -> None:
    loaded = load_recipe("digits")
    dataset = loaded.recipe.load_dataset()
    options, console = RunOptions("digits").on(loaded, dataset), plain_console(quiet=True)
    own = options.settings(loaded).recipe_digest

    def stand_by(digest: str) -> None:
        following = Following(ServerAccess("tcp://127.0.0.1:1", None), digest=digest)
        local, display = LocalRunSettings(0), TrainingProgress(console)
        run_on(RunHost(RunDirectory(tmp_path), local, display, following), loaded, dataset, options)

    stand_by(own)
    with pytest.raises(DatasetError, match=naming("this host has", "the server", named)):
        stand_by(own.replace(f"{part} ", f"{part} x"))
