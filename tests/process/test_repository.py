"""``dist-net serve --repository DIR``: versions that arrive, are damaged, and go."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.nn import Dense, Model
from process import test_serve

pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `web`)")

serve = test_serve.serve


def saved(path: Path, classes: int) -> None:
    """Write a model whose answers have this many numbers."""
    path.mkdir(parents=True)
    model = Model(Dense(classes), (4,), input_dtype=np.float32)
    model.weights = model.layout.initial(np.random.default_rng(1))
    model.save(path / "model")


def test_versions_are_served_as_they_arrive_and_go(
    serve: Any, eventually: Any, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    saved(models / "a" / "1", 2)
    (models / "broken" / "1").mkdir(parents=True)
    (models / "broken" / "1" / "model").write_bytes(b"half of it")
    pool = serve("--repository", str(models), "--workers", "1")

    def shape(name: str) -> Any:
        status, found = pool.get(f"/v2/models/{name}")
        return found["outputs"][0]["shape"][1] if status == 200 else status

    eventually(lambda: shape("a") == 2)
    eventually(lambda: "not_loaded model=broken" in pool.command.stderr)
    saved(models / "a" / "10", 3)  # a higher number than 9, though not as text
    saved(models / "a" / "9", 5)
    saved(models / "b" / "1", 7)
    eventually(lambda: (shape("a"), shape("b")) == (3, 7))
    (models / "a" / "11").mkdir()
    shutil.copy(models / "a" / "9" / "model", models / "a" / "11" / "model")
    with (models / "a" / "11" / "model").open("r+b") as file:
        file.truncate(100)
    eventually(lambda: "not_loaded model=a" in pool.command.stderr)
    assert shape("a") == 3
    shutil.copy(models / "a" / "9" / "model", models / "a" / "11" / "model")
    eventually(lambda: shape("a") == 5)
    shutil.rmtree(models / "a" / "11")
    shutil.rmtree(models / "a" / "9")
    eventually(lambda: shape("a") == 3)
    shutil.rmtree(models / "b")
    eventually(lambda: shape("b") == 404)
    assert shape("a") == 3
