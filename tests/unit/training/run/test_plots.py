"""The images of a run: what they are labelled with, and that odd names and sizes do no harm."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from dist_net.training.run.plots import plot_confusion, plot_training

SAMPLES = 100  # an epoch's


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """Each figure that is saved."""
    saved: list[Figure] = []
    save = Figure.savefig

    def savefig(figure: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return saved


def records(count: int) -> list[dict[str, Any]]:
    """So many of training, one each twentieth of an epoch, and one of the test images."""
    trained = [
        {"kind": "train", "samples": 5 * i, "loss": 2 / i, "accuracy": 0.5, "samples_per_s": 3.0}
        for i in range(1, count + 1)
    ]
    return [*trained, {"kind": "test", "samples": 5 * count, "loss": 0.5, "accuracy": 0.8125}]


def test_a_run_is_drawn_over_epochs_with_a_title_and_its_speed(
    figures: list[Figure], tmp_path: Path
) -> None:
    plot_training(records(60), SAMPLES, "digits", tmp_path / "training.png")
    (figure,) = figures
    assert figure.get_suptitle() == "digits: 3.0 epochs, test accuracy 81.25%"
    assert [axes.get_xlabel() for axes in figure.axes] == ["epoch"] * 3
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["loss", "accuracy", "samples per second"]
    epochs, speed = figure.axes[2].lines[0].get_data()
    np.testing.assert_allclose(epochs, np.arange(1, 61) / 20)
    np.testing.assert_array_equal(speed, 3.0)
    with Image.open(tmp_path / "training.png") as image:
        assert image.width > 2 * image.height


def test_a_long_run_is_drawn_by_as_many_points_as_can_be_told_apart(
    figures: list[Figure], tmp_path: Path
) -> None:
    plot_training(records(20_000), SAMPLES, "digits", tmp_path / "training.png")
    epochs = figures[0].axes[0].lines[0].get_xdata()
    assert len(epochs) == 300
    assert 0 < epochs[0] < epochs[-1] < 1000


def test_a_run_that_was_interrupted_early_is_drawn(figures: list[Figure], tmp_path: Path) -> None:
    plot_training(records(1)[:1], SAMPLES, "digits", tmp_path / "training.png")
    assert figures[0].get_suptitle() == "digits: 0.1 epochs"


def test_names_are_drawn_as_they_are(figures: list[Figure], tmp_path: Path) -> None:
    plot_training(records(1), SAMPLES, r"$\bad", tmp_path / "training.png")
    counts = np.eye(2, dtype=np.int64)
    plot_confusion(counts, [r"$5\bad$", "two"], r"$\bad$", tmp_path / "confusion.png")
    assert figures[1].axes[0].get_title() == r"$\bad$: test images"


def test_a_thousand_classes_make_no_giant(figures: list[Figure], tmp_path: Path) -> None:
    names = [str(number) for number in range(1000)]
    plot_confusion(np.eye(1000, dtype=np.int64), names, "many", tmp_path / "confusion.png")
    assert len(figures) == 1
    with Image.open(tmp_path / "confusion.png") as image:
        assert max(image.size) < 5000
