"""What README tells a reader to type is right: its commands parse, and their files are there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_net.cli import parse

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def commands() -> Iterator[list[str]]:
    """The arguments of each ``dist-net`` in a shell block."""
    for block in blocks("sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and words[0] == "dist-net":
                yield words[1:]


@pytest.mark.parametrize("arguments", list(commands()), ids=" ".join)
def test_a_command_is_one_that_there_is(arguments: list[str]) -> None:
    assert parse(arguments).command == arguments[0]


def test_a_worker_is_told_the_recipe() -> None:
    workers = [parse(arguments) for arguments in commands() if arguments[0] == "worker"]
    assert workers
    assert all(worker.recipe for worker in workers)


def test_the_pictures_that_are_shown_to_a_net_are_there() -> None:
    pictures = re.findall(r"[\w/.-]+\.(?:png|jpg)\b", "".join(blocks("sh") + blocks("python")))
    assert len(pictures) > 3
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []
