"""What is said of a run at its end."""

from argparse import Namespace
from pathlib import Path

import pytest

from dist_net.cli.run_summary import how_to_go_on
from dist_net.nets.run_directory import RunDirectory


@pytest.mark.parametrize(("command", "workers"), [("train", 3), ("parameter-server", 0)])
def test_a_run_that_ended_early_goes_on_by_the_command_that_it_was_started_with(
    tmp_path: Path, command: str, workers: int
) -> None:
    directory = RunDirectory(tmp_path)
    arguments = Namespace(
        command=command,
        workers=workers,
        cluster="local",
        listen=["tcp://127.0.0.1:0"],
        keys=None,
        metrics="127.0.0.1:9100",
        metrics_token_file=None,
    )
    assert "--resume" not in how_to_go_on(arguments, directory)
    directory.options.touch()
    said = how_to_go_on(arguments, directory)
    assert f"dist-net {command} --resume --run-dir {tmp_path}" in said
    assert said.endswith(f"--run-dir {tmp_path} --metrics 127.0.0.1:9100")
