"""``dist-net serve --inbox``: each complete image is answered once, whatever happens to files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from image_runs import write_run
from process import test_serve
from process.test_serve_images import image

Start = Callable[..., Any]
Refuses = Callable[..., None]
serve = test_serve.serve
RED, GREEN, GREY = (255, 0, 0), (0, 255, 0), (90, 90, 90)


def answers(inbox: Path) -> list[dict[str, Any]]:
    file = inbox / "answers.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.main_path
def test_each_complete_image_is_answered_once_and_linked_by_its_class(
    serve: Start, eventually: Callable[..., Any], tmp_path: Path
) -> None:
    inbox, links = tmp_path / "inbox", tmp_path / "links"
    inbox.mkdir()
    run = write_run(tmp_path / "run", threshold=0.5)
    given = (f"colours={run}", "--workers", "1", "--inbox", str(inbox), "--sort-into", str(links))
    (links / "red").mkdir(parents=True)
    (links / "red" / "in_the_way.png").write_text("no link")
    (inbox / "in_the_way.png").write_bytes(image(RED))
    pool = serve(*given)
    for name, colour in (("red.png", RED), ("green.png", GREEN), ("grey.png", GREY)):
        (inbox / name).write_bytes(image(colour))
    (inbox / "notes.txt").write_text("no image")
    (inbox / ".hidden.png").write_bytes(image(RED))
    with (inbox / "slow.png").open("wb") as slow:
        slow.write(image(RED)[:40])
        slow.flush()
        (inbox / "gone.png").write_bytes(image(RED))
        (inbox / "gone.png").unlink()
        slow.write(image(RED)[40:])
    eventually(lambda: len({each["name"] for each in answers(inbox)}) == 6)
    by_name = {each["name"]: each for each in answers(inbox)}
    assert "error" in by_name["notes.txt"]
    assert by_name["slow.png"]["label"] == by_name["red.png"]["label"] == "red"
    assert by_name["grey.png"]["unknown"] is True
    assert (links / "red" / "red.png").read_bytes() == image(RED)
    assert (links / "unknown" / "grey.png").is_symlink()

    pool.command.process.kill()
    pool.command.process.wait()
    (inbox / "red.png").write_bytes(image(GREEN))
    with (inbox / "answers.jsonl").open("ab") as file:
        file.write(b'{"name": "torn')
    serve(*given)
    eventually(lambda: len(answers(inbox)) == 7)
    assert answers(inbox)[-1]["label"] == "green"
    assert [path.parent.name for path in links.glob("*/red.png")] == ["green"]


def test_an_inbox_that_cannot_be_written_is_refused(refuses: Refuses, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", threshold=0.5)
    refuses("missing", "serve", run, "--inbox", tmp_path / "missing", "--http", "127.0.0.1:0")
    refuses("--inbox", "serve", run, "--sort-into", tmp_path)
