"""What a run's page shows of a classifier: answers by class, mistakes, its first weights."""

import json
from base64 import b64decode
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from dist_net.data import Dataset
from dist_net.ground.checkpoint import Checkpoint, write_checkpoint
from dist_net.nets.run_directory import RunDirectory
from dist_net.nn import (
    Conv2D,
    Dense,
    Flatten,
    Layer,
    Model,
    Rescale,
    Sequential,
    cross_entropy_of_logits,
    cross_entropy_of_probabilities,
    softmax,
)
from dist_net.training.run import run_outcome
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.run_outcome import MISTAKES_SHOWN, write_outcome
from dist_net.training.run.timeline_files import FollowedDirectory

NAMES = tuple("abcd")


def dataset(shape: tuple[int, ...], dtype: Any = np.uint8, count: int = 40) -> Dataset:
    random = np.random.default_rng(3)
    inputs = random.integers(0, 255, (count, *shape)).astype(dtype)
    targets = random.integers(0, len(NAMES), count)
    return Dataset("drawn", inputs, targets, inputs, targets, NAMES)


def outcome(path: Path, network: Layer, data: Dataset, loss: Any = cross_entropy_of_logits) -> Any:
    """The outcome of untrained weights."""
    dtype = np.asarray(data.test_inputs).dtype
    model = Model(network, data.input_shape, loss, dtype, class_names=data.class_names)
    weights = model.layout.initial(np.random.default_rng(1))
    directory = RunDirectory(path)
    directory.write(directory.options, '{"recipe": "drawn", "keeps_best": false}')
    found = Checkpoint("drawn", "", model.layout.shapes, 1, {}, {}, {}, weights, {})
    write_checkpoint(directory.checkpoint, found)
    write_outcome(directory, 7, model, data, Evaluator(model, data)(weights))
    return json.loads(directory.outcome.read_text())


def pixels(url: str) -> NDArray[Any]:
    assert url.startswith("data:image/png;base64,")
    return np.asarray(Image.open(BytesIO(b64decode(url.partition(",")[2]))))


def dense(*first: Layer) -> Layer:
    return Sequential(*first, Flatten(), Dense(len(NAMES)))


def test_answers_mistakes_and_first_weights_of_a_classifier_of_images(tmp_path: Path) -> None:
    data = dataset((6, 5, 3))
    found = outcome(tmp_path, dense(Rescale()), data)
    assert found["classes"] == [*NAMES]
    assert np.sum(found["confusion"]) == 40
    wrong = 40 - np.trace(found["confusion"])
    mistakes = found["mistakes"]
    assert len(mistakes) == min(wrong, MISTAKES_SHOWN)
    sure = [each["probability"] for each in mistakes]
    assert sure == sorted(sure, reverse=True)
    for each in mistakes:
        [place] = np.flatnonzero((data.test_inputs == pixels(each["image"])).all((1, 2, 3)))
        assert NAMES[np.asarray(data.test_targets)[place]] == each["label"] != each["answer"]
    assert pixels(found["filters"]).shape == (7, 8 * 6, 3)  # four, and an edge around each


@pytest.mark.parametrize(
    ("shape", "network", "filters"),
    [
        ((8, 8), dense(), (9, 8 * 9)),
        ((9, 9, 1), Sequential(Conv2D(10, 3), Flatten(), Dense(4)), (2 * 4, 8 * 4)),
        ((9, 9, 1), Sequential(Conv2D(10, 1), Flatten(), Dense(4)), None),  # a point
        ((9, 9, 3), Sequential(Conv2D(2, 3), Conv2D(2, 3), Flatten(), Dense(4)), (4, 8 * 4, 3)),
        ((100, 100), dense(), None),  # too large
        ((12,), dense(), None),  # no image
    ],
)
def test_first_weights_are_shown_where_they_are_pictures(
    tmp_path: Path, shape: tuple[int, ...], network: Layer, filters: tuple[int, ...] | None
) -> None:
    found = outcome(tmp_path, network, dataset(shape, np.float32))
    assert (pixels(found["filters"]).shape if found["filters"] else None) == filters
    assert bool(found["mistakes"]) == (len(shape) > 1)
    for each in found["mistakes"]:
        assert max(pixels(each["image"]).shape[:2]) <= 64


def test_probabilities_of_a_net_with_a_softmax_are_not_those_of_logits(tmp_path: Path) -> None:
    of_logits = outcome(tmp_path, dense(Rescale()), dataset((6, 5)))
    network = Sequential(Rescale(), Flatten(), Dense(len(NAMES), softmax))
    found = outcome(tmp_path, network, dataset((6, 5)), cross_entropy_of_probabilities)
    assert found["mistakes"] == of_logits["mistakes"]


def test_few_large_images_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_outcome, "JUDGED_BYTES", 5 * 6 * 5)
    found = outcome(tmp_path, dense(Rescale()), dataset((6, 5)))
    assert 0 < len(found["mistakes"]) <= 5


def test_the_outcome_is_bounded_and_a_viewer_receives_it(tmp_path: Path) -> None:
    random = np.random.default_rng(5)
    names = tuple(map(str, range(80)))
    inputs = random.integers(0, 255, (80, 300, 300, 3)).astype(np.uint8)
    targets = np.arange(80)
    network = Sequential(Rescale(), Conv2D(64, 60, stride=60), Flatten(), Dense(80))
    outcome(tmp_path, network, Dataset("x", inputs, targets, inputs, targets, names))
    assert RunDirectory(tmp_path).outcome.stat().st_size < 2**20
    [line] = json.loads(FollowedDirectory(RunDirectory(tmp_path)).since("")[1])["lines"]
    assert (line["kind"], line["samples"], line["confusion"]) == ("outcome", 7, [])
