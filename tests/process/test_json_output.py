"""With --json, a command that fails prints nothing to stdout."""

import pytest

from dist_net import cli

FAILING = {
    "train": ["none.py"],
    "parameter-server": ["--resume", "auto"],
    "evaluate": ["none"],
    "replay": ["none"],
    "simulate": ["none.py"],
    "predict": ["none", "none.png"],
    "fetch": ["none"],
    "join": ["--connect", "none"],
    "status": ["none"],
    "reload": ["none", "--connect", "none"],
    "labels": ["none"],
}


@pytest.mark.parametrize("command", cli.COMMANDS)
@pytest.mark.usefixtures("ordinary_process")
def test_a_failing_command_prints_nothing_to_stdout(
    command: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        cli.parse([command, "--help"])
    assert ("--json " in capfd.readouterr().out) == (command in FAILING)
    if command in FAILING:
        assert cli.main([command, *FAILING[command], "--json"]) == 2
        assert capfd.readouterr().out == ""
