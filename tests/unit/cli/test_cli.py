"""The command line as a whole, and the names that the package offers."""

import pytest

import dist_net
from dist_net import cli


def test_without_a_command_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    printed = capsys.readouterr()
    assert ended.value.code == 0
    assert all(name in printed.out for name in cli.COMMANDS)
    assert not printed.err


@pytest.mark.parametrize("name", dist_net.__all__)
def test_each_public_name_is_listed_and_can_be_imported(name: str) -> None:
    assert name in dir(dist_net)
    assert getattr(dist_net, name).__name__ == name


def test_packages_are_imported_when_they_are_used() -> None:
    assert dist_net.nn.Dense(1).units == 1
    with pytest.raises(AttributeError, match="nothing"):
        dist_net.nothing  # noqa: B018
