"""From images to classes: which, how many, in which order, and when there is no answer."""

import io
from collections.abc import Callable
from importlib.util import find_spec
from math import prod
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import Expression, astype, mean, reshape
from dist_net.errors import (
    ImageError,
    ModelFileError,
    NotFiniteError,
    ShapeError,
)
from dist_net.images.fitting import letterbox, pad
from dist_net.images.labels import Prediction
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.classifier import Classifier, classifier_from
from dist_net.nets.darknet.configuration import Configuration, parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import write_weights
from dist_net.nets.sources.darknet_files import DarknetFiles
from dist_net.nets.sources.named_source import model_source
from dist_net.nn import Model, Scope
from naming import naming

TINY = """
[net]
height=8
width=12
channels=3
[convolutional]
filters=4
size=3
stride=2
pad=1
batch_normalize=1
activation=leaky
[convolutional]
filters=3
size=1
stride=1
activation=linear
[avgpool]
[softmax]
"""
NAMES = ("red", "green", "blue")


def image(colour: tuple[int, ...], width: int = 12, height: int = 8) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return file.getvalue()


RED, GREEN, BLUE = (image(tuple(row)) for row in 200 * np.eye(3, dtype=int))


def averages(x: Expression, _: Scope) -> Expression:
    """A net without weights: how much there is of each channel, on average."""
    return mean(astype(x, np.float32), (1, 2))


def classifier(**options: int | bool) -> Classifier:
    model = Model(averages, (8, 12, 3), input_dtype=np.float32)
    return Classifier(model, {}, NAMES, **options)


def test_the_likeliest_classes_come_first() -> None:
    (answer,) = classifier().predict([image((51, 255, 102))])
    assert [each.index for each in answer] == [1, 2, 0]
    assert [each.label for each in answer] == ["green", "blue", "red"]
    np.testing.assert_allclose([each.probability for each in answer], [1, 0.4, 0.2], rtol=1e-6)


def test_of_equal_ones_the_first_comes_first() -> None:
    (answer,) = classifier().predict([image((7, 255, 7))], top=2)
    assert [each.label for each in answer] == ["green", "red"]


@pytest.mark.parametrize(("top", "given"), [(1, 1), (2, 2), (3, 3), (100, 3)])
def test_there_are_as_many_as_asked_for_or_all(top: int, given: int) -> None:
    assert [len(answer) for answer in classifier().predict([RED, BLUE], top)] == [given] * 2


def test_logits_become_probabilities() -> None:
    (answer,) = classifier(has_logits=True).predict([image((0, 255, 0))])
    total = np.e + 2
    np.testing.assert_allclose(
        [each.probability for each in answer], [np.e / total, 1 / total, 1 / total], rtol=1e-6
    )


def test_a_bad_image_does_not_keep_the_others_from_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    path.write_bytes(BLUE)
    narrow = image((0, 0, 0), 10_000, 1)
    given = [b"", RED, tmp_path / "none.png", GREEN, str(path), narrow, RED[:45]]
    for batch_size in (1, 2, 3, 8):
        answers = classifier(batch_size=batch_size).predict(given, top=1)
        labels = [
            answer if isinstance(answer, Exception) else answer[0].label for answer in answers
        ]
        assert [labels[1], labels[3], labels[4]] == ["red", "green", "blue"]
        for position in (0, 2, 5, 6):
            assert isinstance(labels[position], ImageError)
        assert "none.png: No such file" in str(labels[2])
        assert str(labels[5]).startswith("image: an image of 10000x1 pixels has no pixels left")


def test_only_bad_images_are_as_many_errors() -> None:
    assert [type(answer) for answer in classifier().predict([b"", b"x"])] == [ImageError] * 2
    assert classifier().predict([]) == []


def test_answers_come_batch_by_batch() -> None:
    taken = []

    def images():
        for number in range(5):
            taken.append(number)
            yield RED

    answers = classifier(batch_size=2).predict_each(images())
    next(answers)
    assert taken == [0, 1]
    assert len(list(answers)) == 4


def test_outputs_that_are_not_finite_are_no_answer() -> None:
    def spoilt(x: Expression, scope: Scope) -> Expression:
        return averages(x, scope) * np.float32(np.inf)  # of black: not a number

    model = Model(spoilt, (8, 12, 3), input_dtype=np.float32)
    dark, bright = Classifier(model, {}, NAMES).predict([image((0, 0, 0)), "none.png"])
    assert isinstance(dark, NotFiniteError)
    assert "image: the net's outputs are not finite" in str(dark)
    assert isinstance(bright, ImageError)


def echo(shape: tuple[int, ...], dtype: type) -> Classifier:
    """Its outputs are its inputs."""

    def network(x: Expression, _: Scope) -> Expression:
        return reshape(astype(x, np.float32), (x.shape[0], prod(x.shape[1:])))

    model = Model(network, shape, input_dtype=dtype)
    return Classifier(model, {}, list(map(str, range(model.classes))))


@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 1), (8, 12, 3)])
@pytest.mark.parametrize(("dtype", "prepare"), [(np.float32, letterbox), (np.uint8, pad)])
def test_images_are_prepared_as_the_model_takes_them(
    shape: tuple[int, ...], dtype: type, prepare: Callable[..., NDArray[np.generic]]
) -> None:
    (answer,) = echo(shape, dtype).predict([image((255, 0, 0), 20, 20)], top=prod(shape))
    given = [each.probability for each in sorted(answer, key=lambda each: each.index)]
    colour = [255, 0, 0] if shape == (8, 12, 3) else [76]
    pixels = np.full((20, 20, len(colour)), colour, np.uint8)
    np.testing.assert_array_equal(given, prepare(pixels, 8, 12).ravel())


@pytest.mark.parametrize("shape", [(96,), (8, 12, 4), (1, 8, 12, 3)])
def test_a_model_that_takes_no_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=naming(shape, "(H, W)", "(H, W, 3)")):
        echo(shape, np.float32)


def test_labels_that_do_not_fit_are_refused() -> None:
    model = Model(averages, (8, 12, 3), input_dtype=np.float32)
    with pytest.raises(ModelFileError, match=naming("2 labels", "3 classes")):
        Classifier(model, {}, NAMES[:2])


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = DarknetNetwork(parse_configuration(TINY, "tiny"))
    write_weights(tmp_path / "tiny.weights", network, seeded_weights(network, 0))
    return tmp_path / "tiny.weights"


def darknet_classifier(
    configuration: Configuration, weights: Path, labels: Path | tuple[str, ...]
) -> Classifier:
    return classifier_from(
        DarknetFiles(lambda: configuration, lambda: weights, labels).read(), "tiny"
    )


def test_a_darknet_net_answers_from_its_files(weights: Path) -> None:
    configuration = parse_configuration(TINY, "tiny")
    names = weights.with_name("names")
    names.write_text("\n".join(NAMES))
    answers = darknet_classifier(configuration, weights, NAMES).predict([RED, GREEN])
    for answer in answers:
        assert sum(each.probability for each in answer) == pytest.approx(1, abs=1e-6)
    assert answers[0] != answers[1]
    assert darknet_classifier(configuration, weights, names).predict([RED, GREEN]) == answers
    assert isinstance(answers[0][0], Prediction)


def test_kernels_are_prepared_once_for_a_file_of_weights(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configuration = parse_configuration(TINY, "tiny")
    answers = darknet_classifier(configuration, weights, NAMES).predict([RED])
    prepared = weights.with_name("tiny.weights.prepared")
    before = prepared.stat()
    assert darknet_classifier(configuration, weights, NAMES).predict([RED]) == answers
    assert prepared.stat().st_ino == before.st_ino
    network = DarknetNetwork(configuration)
    write_weights(weights, network, seeded_weights(network, 1))
    assert darknet_classifier(configuration, weights, NAMES).predict([RED]) != answers
    assert prepared.stat().st_ino != before.st_ino
    prepared.unlink()
    prepared.mkdir()
    darknet_classifier(configuration, weights, NAMES).predict([RED])
    assert "kernels_not_kept" in caplog.text


def test_the_files_of_a_net_have_to_fit_it(weights: Path) -> None:
    configuration = parse_configuration(TINY, "tiny")
    with pytest.raises(ModelFileError, match=naming("none", "No such file")):
        darknet_classifier(configuration, weights, weights.with_name("none"))
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelFileError):
        darknet_classifier(configuration, weights, NAMES)


def test_efficientnet_lite0_knows_a_photograph() -> None:
    dog = Path("/usr/share/darknet/data/dog.jpg")
    if find_spec(lite0.PACKAGE) is None or not dog.exists():
        pytest.skip("the weights, or Debian's package darknet, are not installed")
    found = model_source(lite0.NAME, None, None, lambda _: None).read()
    classifier = classifier_from(found, lite0.NAME)
    (answer,) = classifier.predict([dog], top=2)
    classifier.close()
    assert isinstance(answer, list)
    assert [each.index for each in answer] == [249, 235]
    assert [each.label for each in answer] == ["malamute", "German shepherd"]
    assert [each.probability for each in answer] == pytest.approx([0.33494, 0.29170], abs=1e-4)
