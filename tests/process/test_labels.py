"""``dist-net labels``: corrections and new classes, and the nets that learn from them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dist_net.ground.checkpoint import read_checkpoint
from dist_net.ground.vector import Vector
from drawn_images import draw_shapes

Start = Callable[..., Any]


def head_of(run: Path) -> bytes:
    weights: Vector = read_checkpoint(run / "best.safetensors").evaluated_weights
    return weights.tobytes()


def test_a_new_class_is_learned_as_by_a_run_from_scratch_and_withdrawn_without_a_trace(
    start: Start, base: Path, tmp_path: Path
) -> None:
    photos = draw_shapes(tmp_path / "photos", 12)
    fresh = draw_shapes(tmp_path / "fresh", 5, seed=9, classes=("square",)) / "square"
    run, copied = tmp_path / "run", tmp_path / "copied"

    def train(folder: Path | None, to: Path) -> dict[str, Any]:
        given = ["--resume"] if folder is None else [str(folder), "--base", str(base)]
        return start("train", *given, "--run-dir", str(to), "--json").result()

    train(photos, run)
    before = head_of(run)

    def label(*given: object) -> list[dict[str, Any]]:
        return start("labels", str(run), "--json", *map(str, given)).result()

    assert label() == []
    assert not (run / "collection").exists()
    images = sorted(fresh.iterdir())
    for image in images[:4]:
        label("set", image, "box", "--by", "ann")
    train(None, run)
    assert head_of(run) == before
    (waiting,) = json.loads((run / "report.json").read_text())["waiting"]
    assert [waiting[each] for each in ("name", "images", "groups")] == ["box", 4, None]
    listed = start("labels", str(run))
    listed.ends()
    assert "class 'box' lacks 1 image:" in listed.stderr
    label("set", images[4], "box", "--by", "ann")
    label("set", photos / "circle" / "000.jpg", "triangle", "--by", "bob")
    train(None, run)
    names = [each["name"] for each in json.loads((run / "report.json").read_text())["classes"]]
    assert names == ["box", "circle", "square", "triangle"]

    label_count = len(label())
    listed = start("labels", str(run))
    listed.ends()
    assert "with twice as many images like these" in listed.stderr
    start("labels", str(run), "export", str(copied)).ends()
    train(copied, tmp_path / "scratch")
    assert head_of(tmp_path / "scratch") == head_of(run)

    withdrawn = label("withdraw", "--by", "ann")
    assert len(withdrawn) == 5
    label("withdraw", label_count, "--by", "carl")
    train(None, run)
    assert head_of(run) == before
