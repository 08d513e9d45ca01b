"""A loaded model: the outputs of inputs, the classes of images, and when there is no answer."""

import io
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from math import prod
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from benchmarks.seeded_weights import seeded_weights
from dist_net.autodiff import Expression, astype, mean, reshape
from dist_net.data import records
from dist_net.errors import (
    BadInputError,
    DatasetError,
    DTypeError,
    ImageError,
    ModelFileError,
    ModelSourceError,
    NotFiniteError,
    RecipeError,
    SettingError,
    ShapeError,
)
from dist_net.images.fitting import letterbox, pad
from dist_net.images.labels import Prediction
from dist_net.nets import efficientnet_lite0 as lite0
from dist_net.nets.architecture import DarknetArchitecture
from dist_net.nets.darknet.configuration import Configuration, parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import write_weights
from dist_net.nets.sources.found_model import DarknetFiles, FoundModel
from dist_net.nn import Dense, Field, Layer, Model, NamedOutputs, Scope, Sequential, relu
from dist_net.nn.inference import prepare as prepare_weights
from dist_net.nn.losses import cross_entropy_of_probabilities
from dist_net.python.loaded_model import (
    IMAGES_AT_ONCE,
    ClassifiedImage,
    LoadedModel,
    export_model,
    load,
)
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


def loaded(
    model: Model, names: Sequence[str] = NAMES, has_logits: bool = False, fitting: str = "pad"
) -> LoadedModel:
    """A model without weights, of a source that has it in memory."""
    weights = np.empty(0, np.float32)
    architecture = DarknetArchitecture("")
    found = FoundModel(
        model, architecture, tuple(names), {}, "", lambda: weights, has_logits, fitting=fitting
    )
    return LoadedModel(SimpleNamespace(read=lambda: found), "net")  # type: ignore[arg-type]


def classifier(has_logits: bool = False) -> LoadedModel:
    model = Model(averages, (8, 12, 3), cross_entropy_of_probabilities, np.float32)
    return loaded(model, has_logits=has_logits)


def test_the_likeliest_classes_come_first() -> None:
    (answer,) = classifier().classify_each([image((51, 255, 102))])
    assert [each.index for each in answer] == [1, 2, 0]
    assert [each.label for each in answer] == ["green", "blue", "red"]
    np.testing.assert_allclose([each.probability for each in answer], [1, 0.4, 0.2], rtol=1e-6)


def test_of_equal_ones_the_first_comes_first() -> None:
    (answer,) = classifier().classify_each([image((7, 255, 7))], top=2)
    assert [each.label for each in answer] == ["green", "red"]


@pytest.mark.parametrize(("top", "given"), [(1, 1), (2, 2), (3, 3), (100, 3)])
def test_there_are_as_many_as_asked_for_or_all(top: int, given: int) -> None:
    answers = classifier().classify_each([RED, BLUE], top)
    assert [len(answer) for answer in answers if isinstance(answer, list)] == [given] * 2
    assert len(classifier().classify(RED, top)) == given


def test_logits_become_probabilities() -> None:
    (answer,) = classifier(has_logits=True).classify_each([image((0, 255, 0))])
    total = np.e + 2
    np.testing.assert_allclose(
        [each.probability for each in answer], [np.e / total, 1 / total, 1 / total], rtol=1e-6
    )


def test_a_bad_image_does_not_keep_the_others_from_their_answers(tmp_path: Path) -> None:
    path = tmp_path / "blue.png"
    path.write_bytes(BLUE)
    narrow = image((0, 0, 0), 10_000, 1)
    given = [b"", RED, tmp_path / "none.png", GREEN, str(path), narrow, RED[:45]]
    for before in range(IMAGES_AT_ONCE):
        answers = classifier().classify_each([BLUE] * before + given, top=1)
        labels = [each if isinstance(each, Exception) else each[0].label for each in answers]
        labels = labels[before:]
        assert [labels[1], labels[3], labels[4]] == ["red", "green", "blue"]
        for position in (0, 2, 5, 6):
            assert isinstance(labels[position], ImageError)
        assert "none.png: No such file" in str(labels[2])
        assert str(labels[5]).startswith("image: an image of 10000x1 pixels has no pixels left")


def test_a_bad_image_by_itself_raises_its_error() -> None:
    with pytest.raises(ImageError, match=naming("none.png")):
        classifier().classify("none.png")


def test_only_bad_images_are_as_many_errors() -> None:
    answers = classifier().classify_each([b"", b"x"])
    assert [type(answer) for answer in answers] == [ImageError] * 2
    assert list(classifier().classify_each([])) == []


def test_answers_come_batch_by_batch() -> None:
    taken = []

    def images():
        for number in range(IMAGES_AT_ONCE + 1):
            taken.append(number)
            yield RED

    answers = classifier().classify_each(images())
    next(answers)
    assert taken == [*range(IMAGES_AT_ONCE)]
    assert len(list(answers)) == IMAGES_AT_ONCE


def test_outputs_that_are_not_finite_are_no_answer() -> None:
    def spoilt(x: Expression, scope: Scope) -> Expression:
        return averages(x, scope) * np.float32(np.inf)  # of black: not a number

    model = Model(spoilt, (8, 12, 3), input_dtype=np.float32)
    dark, bright = loaded(model).classify_each([image((0, 0, 0)), "none.png"])
    assert isinstance(dark, NotFiniteError)
    assert "image: the net's outputs are not finite" in str(dark)
    assert isinstance(bright, ImageError)


def echo(shape: tuple[int, ...], dtype: type) -> LoadedModel:
    """Its outputs are its inputs."""

    def network(x: Expression, _: Scope) -> Expression:
        return reshape(astype(x, np.float32), (x.shape[0], prod(x.shape[1:])))

    model = Model(network, shape, input_dtype=dtype)
    return loaded(model, [*map(str, range(model.classes))])


@pytest.mark.parametrize("shape", [(8, 12), (8, 12, 1), (8, 12, 3)])
@pytest.mark.parametrize(("dtype", "prepare"), [(np.float32, letterbox), (np.uint8, pad)])
def test_images_are_prepared_as_the_model_takes_them(
    shape: tuple[int, ...], dtype: type, prepare: Callable[..., NDArray[np.generic]]
) -> None:
    answer = echo(shape, dtype).classify(image((255, 0, 0), 20, 20), top=prod(shape))
    given = [each.probability for each in sorted(answer, key=lambda each: each.index)]
    colour = [255, 0, 0] if shape == (8, 12, 3) else [76]
    pixels = np.full((20, 20, len(colour)), colour, np.uint8)
    np.testing.assert_array_equal(given, prepare(pixels, 8, 12).ravel())


@pytest.mark.parametrize("shape", [(96,), (8, 12, 4), (1, 8, 12, 3)])
def test_a_model_that_takes_no_images_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelSourceError, match=naming([*shape], "no images", "predict")):
        echo(shape, np.float32).classify(RED)


def test_labels_that_do_not_fit_are_refused() -> None:
    model = Model(averages, (8, 12, 3), input_dtype=np.float32)
    with pytest.raises(ModelFileError, match=naming("2 labels", "3 classes")):
        loaded(model, NAMES[:2]).found  # noqa: B018


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    network = DarknetNetwork(parse_configuration(TINY, "tiny"))
    write_weights(tmp_path / "tiny.weights", network, seeded_weights(network, 0))
    return tmp_path / "tiny.weights"


def darknet_classifier(
    configuration: Configuration, weights: Path, labels: Path | tuple[str, ...]
) -> LoadedModel:
    return LoadedModel(DarknetFiles(lambda: configuration, lambda: weights, labels), "tiny")


def answers_to(model: LoadedModel, *images: bytes) -> list[ClassifiedImage]:
    return list(model.classify_each(images))


def test_a_darknet_net_answers_from_its_files(weights: Path) -> None:
    configuration = parse_configuration(TINY, "tiny")
    names = weights.with_name("names")
    names.write_text("\n".join(NAMES))
    answers = answers_to(darknet_classifier(configuration, weights, NAMES), RED, GREEN)
    for answer in answers:
        assert sum(each.probability for each in answer) == pytest.approx(1, abs=1e-6)
    assert answers[0] != answers[1]
    assert answers_to(darknet_classifier(configuration, weights, names), RED, GREEN) == answers
    assert isinstance(answers[0][0], Prediction)


def test_kernels_are_prepared_once_for_a_file_of_weights(
    weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configuration = parse_configuration(TINY, "tiny")
    answers = answers_to(darknet_classifier(configuration, weights, NAMES), RED)
    prepared = weights.with_name("tiny.weights.prepared")
    before = prepared.stat()
    assert answers_to(darknet_classifier(configuration, weights, NAMES), RED) == answers
    assert prepared.stat().st_ino == before.st_ino
    network = DarknetNetwork(configuration)
    write_weights(weights, network, seeded_weights(network, 1))
    assert answers_to(darknet_classifier(configuration, weights, NAMES), RED) != answers
    assert prepared.stat().st_ino != before.st_ino
    prepared.unlink()
    prepared.mkdir()
    darknet_classifier(configuration, weights, NAMES).found  # noqa: B018
    assert "kernels_not_kept" in caplog.text


def test_the_files_of_a_net_have_to_fit_it(weights: Path) -> None:
    configuration = parse_configuration(TINY, "tiny")
    with pytest.raises(ModelFileError, match=naming("none", "No such file")):
        darknet_classifier(configuration, weights, weights.with_name("none")).found  # noqa: B018
    weights.write_bytes(weights.read_bytes()[:-4])
    with pytest.raises(ModelFileError):
        darknet_classifier(configuration, weights, NAMES).found  # noqa: B018


def test_efficientnet_lite0_knows_a_photograph() -> None:
    dog = Path("/usr/share/darknet/data/dog.jpg")
    if find_spec(lite0.PACKAGE) is None or not dog.exists():
        pytest.skip("the weights, or Debian's package darknet, are not installed")
    answer = load(lite0.NAME).classify(dog, top=2)
    assert [each.index for each in answer] == [249, 235]
    assert [each.label for each in answer] == ["malamute", "German shepherd"]
    assert [each.probability for each in answer] == pytest.approx([0.33494, 0.29170], abs=1e-4)


def linear(inputs: DTypeLike, output: Layer) -> LoadedModel:
    """A model with weights, read from memory."""
    model = Model(output, () if np.dtype(inputs).names else (3,), "mse", inputs)
    weights = np.ones(model.layout.size, np.float32)
    found = FoundModel(
        model, DarknetArchitecture(""), (), prepare_weights(model, weights), "", lambda: weights
    )
    return LoadedModel(SimpleNamespace(read=lambda: found), "net")  # type: ignore[arg-type]


def test_a_single_output_is_an_array_and_several_are_found_by_name() -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    one = linear(np.float32, Dense(2))
    np.testing.assert_array_equal(one.predict(rows), [[4, 4], [13, 13]])
    np.testing.assert_array_equal(one.predict({"input": rows}), one.predict(rows))
    np.testing.assert_array_equal(one.predict(rows[1]), [13, 13])
    np.testing.assert_array_equal(one.predict(rows.astype(float)), one.predict(rows))
    with pytest.raises(DTypeError, match=naming("complex128", "float32")):
        one.predict(rows.astype(complex))
    heads = Sequential(Field("a"), NamedOutputs({"sum": Dense(1), "more": Dense(2)}))
    several = linear([("a", np.float32, (3,)), ("b", np.float32, (1,))], heads)
    assert [(each.name, each.shape) for each in several.inputs] == [("a", (3,)), ("b", (1,))]
    named = {"a": rows, "b": rows[:, :1]}
    outputs = several.predict(named)
    assert {name: each.shape for name, each in outputs.items()} == {"sum": (2, 1), "more": (2, 2)}
    for name, each in several.predict(records(**named)).items():
        np.testing.assert_array_equal(each, outputs[name])
    for wrong in (rows, {"a": rows}):
        with pytest.raises(ShapeError, match=naming("a (3,)", "b (1,)", "axis of rows")):
            several.predict(wrong)


def test_a_model_of_numbers_has_no_probabilities_and_samples_of_its_own_only_a_run() -> None:
    model = linear(np.float32, Dense(1))
    with pytest.raises(ModelSourceError, match=naming("numbers", "predict")):
        model.probabilities(np.ones((1, 3), np.float32))
    with pytest.raises(ModelSourceError, match=naming("evaluate(inputs, targets)")):
        model.evaluate()
    assert model.evaluate(np.ones((2, 3), np.float32), np.array([[4], [6]])).loss == 2
    with pytest.raises(RecipeError, match=naming("(3,)", "(4,)")):
        model.evaluate(np.ones((2, 4), np.float32), np.ones((2, 1)))


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
def test_every_source_is_evaluated_alike(engine: str, tmp_path: Path) -> None:
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    random = np.random.default_rng(0)
    model = Model(Sequential(Dense(5, relu), Dense(3)), (4,), input_dtype=np.float32)
    model.weights = model.layout.initial(random)
    model.save(tmp_path / "m.safetensors")
    inputs, labels = random.normal(size=(50, 4)).astype(np.float32), random.integers(3, size=50)
    expected = model.evaluate(inputs, labels)
    loaded = load(tmp_path / "m.safetensors", engine=engine)
    sources = [loaded]
    if engine == "onnxruntime":
        export_model(load(tmp_path / "m.safetensors"), tmp_path / "m.onnx")
        sources.append(load(tmp_path / "m.onnx"))
    for each in sources:
        found = each.evaluate(inputs, labels)
        assert found.accuracy == expected["accuracy"]
        assert found.loss == pytest.approx(expected["loss"], rel=1e-4)
        assert each.class_names == ("0", "1", "2")
        assert found.confusion.sum() == 50
        with pytest.raises(DatasetError, match=naming("3")):
            each.evaluate(inputs, labels + 1)


@pytest.mark.parametrize("name", [300 * "a", f"m={300 * 'a'}", f"{300 * 'a'}/b.onnx", "a\0b"])
def test_a_name_that_no_file_can_have_is_no_model(name: str) -> None:
    with pytest.raises(BadInputError, match=r"too long for the name of a file|expected a path"):
        load(name)


def test_only_models_are_exported(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=naming("str", "dist_net.load")):
        export_model("run", tmp_path / "m.npz")  # type: ignore[arg-type]
