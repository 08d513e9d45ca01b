"""A served version of a model: payloads in, one result each, whatever the company."""

import io
from dataclasses import replace
from pathlib import Path
from threading import Barrier

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded_weights import seeded_weights
from described import described
from dist_net.errors import ModelLoadError
from dist_net.images.fitting import ImageInputs, fit_image
from dist_net.nets.architecture import DarknetArchitecture, RecipeArchitecture
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.recipe_origins import origin_of
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.recipes.recipe_files import trust
from dist_net.nn import Model, Predictor
from dist_net.nn.inference import prepare, softmax
from dist_net.serving.pool.requests import Status
from dist_net.serving.worker.served_network import ServedNetwork, WorkerSettings
from dist_net.wire.serving_messages import BatchDone, RunBatch
from naming import naming

CONFIGURATION = """
[net]
height=8
width=12
channels=3
[convolutional]
filters=16
size=3
stride=1
pad=1
batch_normalize=1
activation=leaky
[convolutional]
filters=5
size=1
stride=1
activation=linear
[avgpool]
[softmax]
"""

DARKNET = described(
    "m",
    input_shape=(8, 12, 3),
    classes=5,
    labels=tuple("abcde"),
    takes_images=True,
    architecture=DarknetArchitecture(CONFIGURATION),
)
DIGITS = described(
    "m",
    input_datatype="UINT8",
    input_shape=(8, 8),
    classes=10,
    labels=tuple("0123456789"),
    takes_images=True,
    has_logits=True,
    architecture=origin_of("digits").architecture_of(load_recipe("digits")),
)

VECTOR = """
from dist_net.data import Dataset
from dist_net.nn import Dense, Rescale, Sequential
from dist_net.nets.recipes.recipe import Recipe


def dataset() -> Dataset:
    raise RuntimeError("nobody needs it to serve the model")


recipe = Recipe(Sequential(Rescale(), Dense(3)), dataset, (4,))
"""


def answer(network: ServedNetwork, payloads, is_image: bool) -> BatchDone:
    return network.answer(RunBatch(1, "m", 1, is_image, tuple(payloads)))


@pytest.fixture
def served():
    """Makes networks of descriptions, and ends their threads."""
    made = []

    def make(description=DARKNET, scale=1.0, **options):
        model = description.architecture.build("m")
        weights = model.layout.initial(np.random.default_rng(0))
        if isinstance(description.architecture, DarknetArchitecture):
            weights = seeded_weights(model.network, 0)
        prepared = prepare(model, weights * np.float32(scale))
        made.append(ServedNetwork(description, prepared, WorkerSettings(Path(), **options)))
        return made[-1]

    yield make
    for each in made:
        each.close()


def tensors(rows, seed=0):
    return np.random.default_rng(seed).random((rows, 8, 12, 3), np.float32)


def probabilities(payload, classes=5):
    return np.frombuffer(payload, "<f4").reshape(-1, classes)


def image(colour=(200, 30, 30), size=(12, 8), kind="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind)
    return file.getvalue()


def test_each_tensor_is_answered_with_as_many_rows(served):
    inputs = tensors(8)
    network = served(reproducible=True)
    payloads = [inputs[:3].tobytes(), memoryview(inputs[3:4].tobytes()), inputs[4:].tobytes()]
    answers = answer(network, payloads, is_image=False)
    assert answers.statuses == bytes([Status.OK] * 3)
    alone = [bytes(answer(network, [row.tobytes()], False).payloads[0]) for row in inputs]
    assert [bytes(each) for each in answers.payloads] == [
        b"".join(alone[:3]),
        alone[3],
        b"".join(alone[4:]),
    ]
    np.testing.assert_allclose(probabilities(answers.payloads[0]).sum(axis=1), 1, rtol=1e-5)
    assert answers.prepare_s >= 0
    assert answers.compute_s > 0


def test_each_image_that_a_net_crops_has_an_answer_of_its_own(served):
    crop = "[crop]\ncrop_height=6\ncrop_width=8\nnoadjust=1\n"
    pointwise = CONFIGURATION.replace("size=3", "size=1").replace("pad=1", "pad=0")
    configuration = pointwise.replace("channels=3\n", f"channels=3\n{crop}")
    network = served(replace(DARKNET, architecture=DarknetArchitecture(configuration)))
    inputs = tensors(4)
    answers = probabilities(answer(network, [inputs.tobytes()], is_image=False).payloads[0])

    plain = DarknetNetwork(parse_configuration(configuration, "m"))
    model = Model(plain, plain.input_shape, input_dtype=np.float32)
    expected = Predictor(model, seeded_weights(plain, 0))(inputs)
    np.testing.assert_allclose(answers, expected, rtol=1e-4)
    assert len(np.unique(answers, axis=0)) == 4


def test_logits_become_probabilities(served):
    images = np.random.default_rng(0).integers(0, 17, (3, 8, 8)).astype(np.uint8)
    answers = answer(served(DIGITS), [images.tobytes()], is_image=False)
    recipe = load_recipe("digits").recipe
    expected = softmax(Predictor(recipe.model, recipe.initial_weights(0))(images))
    np.testing.assert_allclose(probabilities(answers.payloads[0], 10), expected, atol=1e-5)


def test_an_image_is_answered_as_the_tensor_that_it_becomes(served):
    network = served(reproducible=True)
    red, grey = image((255, 0, 0)), image((51, 51, 51))
    as_tensor = np.zeros((8, 12, 3), np.float32)
    as_tensor[..., 0] = 1
    images = answer(network, [red, memoryview(grey)], is_image=True)
    tensor = answer(network, [as_tensor.tobytes()], is_image=False)
    assert bytes(images.payloads[0]) == bytes(tensor.payloads[0])
    assert bytes(images.payloads[1]) != bytes(tensor.payloads[0])


@pytest.mark.parametrize("fitting", ["pad", "crop", "stretch"])
def test_an_image_is_fitted_as_the_description_says(served, fitting):
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 20), np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    network = served(replace(DIGITS, fitting=fitting))
    as_tensor = fit_image(file.getvalue(), (8, 8), fitting).tobytes()
    answers = [answer(network, [file.getvalue()], True), answer(network, [as_tensor], False)]
    assert len({bytes(each.payloads[0]) for each in answers}) == 1


@pytest.mark.parametrize("threads", [1, 3])
def test_a_bad_image_fails_alone(served, threads):
    network = served(threads=threads)
    narrow, large = image(size=(10_000, 1)), image(size=(40, 30))
    strict = served(max_pixels=12 * 8, threads=threads)
    good = [b"", image(), b"none", narrow, image()[:40], image(kind="TIFF")]
    answers = answer(network, good, is_image=True)
    bad = Status.BAD_INPUT
    assert list(answers.statuses) == [bad, Status.OK, bad, bad, bad, bad]
    assert b"an empty file" in answers.payloads[0]
    assert b"no pixels left" in answers.payloads[3]
    assert bytes(answers.payloads[1]) == bytes(answer(network, good[1:2], True).payloads[0])
    assert list(answer(strict, [large, image()], True).statuses) == [bad, Status.OK]
    assert list(answer(network, [b"", b"x"], True).statuses) == [bad, bad]


def test_several_threads_decode_at_once_and_answers_keep_their_order(served, monkeypatch):
    network = served(threads=2, reproducible=True)
    images = [image((shade, 255 - shade, 9)) for shade in range(0, 256, 40)]
    alone = [bytes(answer(network, [each], True).payloads[0]) for each in images]
    assert len(set(alone)) == len(images)
    two_decode, decode = Barrier(2), ImageInputs.fit

    def with_another(inputs, source):
        two_decode.wait(60)
        return decode(inputs, source)

    monkeypatch.setattr(ImageInputs, "fit", with_another)
    together = answer(network, images[:6], True)
    assert [bytes(each) for each in together.payloads] == alone[:6]


@pytest.mark.parametrize("size", [0, 1, 8 * 12 * 3 * 4 - 1, 8 * 12 * 3 * 4 + 4])
def test_a_tensor_of_another_size_fails_alone(served, size):
    good = tensors(1).tobytes()
    answers = answer(served(), [good, b"x" * size, good], is_image=False)
    assert list(answers.statuses) == [Status.OK, Status.BAD_INPUT, Status.OK]
    assert (
        f"{size:,} bytes; expected one or more rows of 1,152 bytes".encode()
        in (answers.payloads[1])
    )


def test_a_tensor_that_holds_nan_is_answered_with_nan_and_others_with_numbers(served):
    inputs = tensors(3)
    inputs[1, 4, 4, 1] = np.nan
    answers = answer(served(), [row.tobytes() for row in inputs], is_image=False)
    assert list(answers.statuses) == [Status.OK] * 3
    assert np.isnan(probabilities(answers.payloads[1])).any()
    assert np.isfinite(probabilities(answers.payloads[0])).all()
    assert np.isfinite(probabilities(answers.payloads[2])).all()


def test_an_image_is_not_answered_with_what_is_no_number(served):
    file = io.BytesIO()
    Image.new("L", (8, 8), 255).save(file, "PNG")
    answers = answer(served(DIGITS, scale=1e30), [file.getvalue()], is_image=True)
    assert list(answers.statuses) == [Status.BAD_INPUT]
    assert b"not finite" in answers.payloads[0]


def test_weights_that_are_no_numbers_are_not_served(served):
    with pytest.raises(ModelLoadError, match=naming("m version 1", "finite")):
        served(DIGITS, scale=np.nan)


@pytest.mark.parametrize("description", [DARKNET, DIGITS], ids=["darknet", "digits"])
def test_an_input_gets_the_same_bytes_whatever_its_company(served, description):
    random = np.random.default_rng(0)
    network = served(description, reproducible=True)
    if description is DARKNET:
        rows = [row.tobytes() for row in tensors(20)]
    else:
        rows = [random.integers(0, 17, 64).astype(np.uint8).tobytes() for _ in range(20)]
    alone = [bytes(answer(network, [row], False).payloads[0]) for row in rows]
    for _ in range(50):
        chosen = random.integers(0, 20, random.integers(1, 9))
        found = answer(network, [rows[i] for i in chosen], False).payloads
        assert [bytes(each) for each in found] == [alone[i] for i in chosen]


def test_a_gateway_names_only_runs_recipes_with_digests(tmp_path: Path) -> None:
    for name, digests in ("other.py", {"recipe.py": "a" * 64}), ("recipe.py", {}):
        path = tmp_path / name
        path.write_text("raise SystemExit('it was run')")
        architecture = RecipeArchitecture(str(path), str(path), tuple(digests.items()))
        with pytest.raises(ModelLoadError, match=name):
            architecture.build("m", trust_recipe=True)


def test_a_model_without_images_is_served_too(served, tmp_path: Path):
    path = tmp_path / "recipe.py"
    path.write_text(VECTOR)
    loaded = load_recipe(str(path))
    trust(loaded.file_digests)
    description = described(
        "digits",
        input_datatype="UINT8",
        has_logits=True,
        architecture=origin_of(loaded.reference).architecture_of(loaded),
    )
    network = served(description)
    answers = answer(network, [bytes([1, 2, 3, 4])], is_image=False)
    assert probabilities(answers.payloads[0], 3).sum() == pytest.approx(1)
    refused = answer(network, [image()], is_image=True)
    assert list(refused.statuses) == [Status.BAD_INPUT]
    assert b"takes no images" in refused.payloads[0]


def test_a_recipe_that_is_another_here_is_refused():
    other = RecipeArchitecture("digits", "digits", (("recipe.py", "0" * 64),))
    with pytest.raises(ModelLoadError, match=naming("digits", "m", "release")):
        ServedNetwork(replace(DIGITS, architecture=other), {}, WorkerSettings(Path()))


def test_a_version_of_other_weights_answers_beside_the_one_that_it_is_bound_from(served):
    network, alone = served(), served(scale=1.5)
    network_of_model = DarknetNetwork(parse_configuration(CONFIGURATION, "m"))
    model = Model(network_of_model, network_of_model.input_shape, input_dtype=np.float32)
    weights = seeded_weights(network_of_model, 0) * np.float32(1.5)
    second = network.rebound(replace(DARKNET, version=2), prepare(model, weights))
    try:
        assert (network.description.version, second.description.version) == (1, 2)
        payload = [tensors(2).tobytes()]
        first, *found = (
            bytes(answer(each, payload, False).payloads[0]) for each in (network, second, alone)
        )
        assert found[0] == found[1] != first
        nothing = prepare(model, weights * np.float32(np.nan))
        with pytest.raises(ModelLoadError, match=naming("version 3", "finite")):
            second.rebound(replace(DARKNET, version=3), nothing)
        network.close()
        assert bytes(answer(second, payload, False).payloads[0]) == found[0]
    finally:
        second.close()
    assert second.rebound(replace(DARKNET, version=4), prepare(model, weights)) is None
