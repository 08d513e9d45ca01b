"""The command line as a whole, and the names that the package offers."""

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import dist_net
from dist_net import cli
from dist_net.cli.parser import Parser
from image_runs import write_run
from naming import naming


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
    public = getattr(dist_net, name)
    assert name == "__version__" or public.__name__ in (name, f"dist_net.{name}")


def test_packages_are_imported_when_they_are_used() -> None:
    assert dist_net.nn.Dense(1).units == 1
    with pytest.raises(AttributeError, match="nothing"):
        dist_net.nothing  # noqa: B018


def parsers_of(command: str) -> Iterator[argparse.ArgumentParser]:
    """The parser of a command and those of its actions, caught when it prints its help."""
    found: list[argparse.ArgumentParser] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Parser, "print_help", lambda parser: found.append(parser))
        with pytest.raises(SystemExit):
            cli.parse([command, "--help"])
    while found:
        yield (parser := found.pop())
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found += action.choices.values()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_argument_is_explained(command: str) -> None:
    for parser in parsers_of(command):
        for action in parser._actions:
            is_explained = action.help and not action.help.startswith("default")
            assert is_explained or isinstance(action, argparse._SubParsersAction), action


def test_the_package_has_the_version_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert capsys.readouterr().out.split()[-1] == dist_net.__version__


def test_data_instead_of_a_recipe_are_answered_with_where_recipes_are_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wine.csv").write_text("1,2\n")
    assert cli.main(["train", str(tmp_path / "wine.csv")]) == 2
    said = capsys.readouterr().err
    assert re.search(naming("wine.csv", "docs/learn/your_own_data.md"), said)
    assert Path("docs/learn/your_own_data.md").exists()


@pytest.mark.parametrize("words", [["token"], ["revoke", "bob"]])
def test_keys_names_a_directory_that_is_missing(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    action, *names = words
    assert cli.main(["keys", action, str(tmp_path / "none"), *names]) == 2
    assert re.search(naming("no directory", tmp_path / "none"), capsys.readouterr().err)


def test_a_name_that_no_file_can_have_is_refused_in_a_line(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["serve", 300 * "n"]) == 2
    said = capsys.readouterr().err
    assert "too long" in said
    assert said.count("\n") == 1
    assert len(said) < 200


def test_evaluate_without_a_run_names_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    write_run(Path("runs/colours"))
    assert cli.main(["evaluate", "--json"]) == 0
    assert re.search(naming(Path("runs/colours")), capsys.readouterr().err)
