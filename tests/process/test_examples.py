"""The examples of Darknet-53 and of serving, run as a reader would, on seeded weights."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded_weights import seeded_weights
from benchmarks.served import TINY, write_net
from dist_net.nets import darknet
from dist_net.nets.classifier import load_classifier

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


def test_the_example_says_what_the_classifier_does(photo: Path, weights: Path) -> None:
    *told, first, second, third, fourth, fifth = printed("darknet53/classify.py", photo, weights)
    assert told == [
        "Darknet53: 78 layers, inputs of (256, 256, 3)",
        f"41,645,640 numbers in {weights}",
        f"{photo}: 300 by 200 pixels",
    ]
    configuration = darknet.published("darknet53").configuration()
    classifier = load_classifier(configuration, weights, darknet.imagenet_labels())
    (answer,) = classifier.predict([photo])
    assert [first, second, third, fourth, fifth] == [
        f"{each.probability:7.2%}  {each.label}" for each in answer
    ]


@pytest.mark.skipif(find_spec("torch") is None, reason="needs PyTorch (the extra `peers`)")
def test_its_equivalent_in_pytorch_says_the_same(photo: Path, weights: Path) -> None:
    ours = printed("darknet53/classify.py", photo, weights)
    assert printed("darknet53/pytorch_equivalent.py", photo, weights) == ours[3:]


@pytest.mark.skipif(find_spec("uvicorn") is None, reason="needs uvicorn (the extra `web`)")
def test_a_pool_says_the_same_over_zeromq_and_http(photo, tmp_path, start, eventually) -> None:
    source = write_net(TINY, tmp_path / "net").source
    on_free_ports = "--http", "127.0.0.1:0", "--listen", "tcp://127.0.0.1:0"
    pool = start("serve", source, "--workers", "1", *on_free_ports)
    ready = eventually(lambda: re.search(r"READY http=(\S+) zmq=(\S+)\n", pool.stdout))
    lines = printed("serving/client.py", photo, *ready.groups())
    assert lines[0] == "tiny: 10 classes, inputs of (28, 28, 1)"
    assert len({*lines[1:4]}) == 3
    assert lines[4] == "32 arrays, answered by version [1]"
    assert lines[5:8] == lines[1:4]
    assert lines[8:] == ["probabilities of [1, 10]: the same over HTTP"]
