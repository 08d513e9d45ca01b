"""Recipes whose data are no images: hundreds of classes, or numbers to be predicted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_net.data import FetchEvent
from dist_net.errors import ModelSourceError
from dist_net.nets.sources.found_model import FoundModel
from dist_net.nets.sources.named_source import NamedSource
from dist_net.python.loaded_model import load
from dist_net.serving.model_reading import described
from dist_net.serving.pool.requests import Status
from dist_net.serving.worker.served_network import ServedNetwork, WorkerSettings
from dist_net.wire.serving_messages import RunBatch
from naming import naming

Start = Callable[..., Any]

COLUMNS = """
import numpy as np
from dist_net import Recipe
from dist_net.data import Dataset
from dist_net.nn import Dense, Sequential, mean_squared_error
from dist_net.optim import Cosine

random = np.random.default_rng(0)
"""
PLANE = """
inputs = random.normal(size=(512, 3)).astype(np.float32)
targets = inputs @ random.normal(size=(3, 2))
data = Dataset("plane", inputs, targets, inputs[:50], targets[:50])
recipe = Recipe(Sequential(Dense(2)), lambda: data, (3,), loss=mean_squared_error,
                learning_rate=0.1, schedule=Cosine(), epochs=30, input_dtype=np.float32)
"""


def ignore(_: FetchEvent) -> None:
    """Nothing is fetched."""


def served(
    found: FoundModel, directory: Path, rows: np.ndarray, settings: WorkerSettings | None = None
) -> tuple[Any, np.ndarray]:
    """The description of a model, and its outputs for these rows."""
    description = described(found, "columns", 1, directory)
    settings = settings or WorkerSettings(directory)
    network = ServedNetwork(description, found.prepared, settings)
    answers = network.answer(RunBatch(1, "columns", 1, False, (rows.tobytes(),)))
    network.close()
    assert answers.statuses == bytes([Status.OK])
    return description, np.frombuffer(answers.payloads[0], "<f4").reshape(len(rows), -1)


def test_numbers_are_learnt_and_served_as_they_are(start: Start, tmp_path: Path) -> None:
    path, run = tmp_path / "columns.py", tmp_path / "run"
    path.write_text(COLUMNS + PLANE)
    report = start("train", str(path), "--run-dir", str(run), "--json").result()
    assert report["test_accuracy"] is None
    assert report["test_loss"] < 0.05
    assert '"accuracy": null' in (run / "metrics.jsonl").read_text()
    found = NamedSource("m", str(run)).open(ignore).read()
    description, outputs = served(found, tmp_path, np.eye(3, dtype=np.float32))
    plane = np.random.default_rng(0)
    plane.normal(size=(512, 3))
    np.testing.assert_allclose(outputs, plane.normal(size=(3, 2)), atol=0.5)
    assert (description.has_classes, description.labels, description.classes) == (False, (), 2)
    with pytest.raises(ModelSourceError, match=naming("run", "classes")):
        load(run).classify("photo.png")
