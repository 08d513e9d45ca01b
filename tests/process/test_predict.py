"""``dist-net predict`` as a person and as a program use it: what it prints where, and its end."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks.seeded_weights import seeded_weights
from dist_net.data import dataset_named
from dist_net.nets.darknet.configuration import parse_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.published import imagenet_labels, published
from dist_net.nets.darknet.weights import write_weights
from dist_net.nets.run_directory import RunDirectory
from image_runs import CONFIGURATION, write_run

Start = Callable[..., Any]


@pytest.fixture
def net(tmp_path: Path) -> list[str]:
    """A net that sees how red, green and blue an image is: what the command is given of it."""
    configuration, weights, labels = (tmp_path / name for name in ("n.cfg", "n.weights", "names"))
    configuration.write_text(CONFIGURATION)
    labels.write_text("red\nmoss green\nblue\n")
    network = DarknetNetwork(parse_configuration(CONFIGURATION, "n"))
    kernel_and_bias = np.zeros(network.layout.size, np.float32)
    for view in network.layout.views(kernel_and_bias).values():
        if view.ndim > 1:
            view[...] = np.log(4) * np.eye(3)
    write_weights(weights, network, kernel_and_bias)
    return [str(configuration), "--weights", str(weights), "--labels", str(labels)]


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """A red one, none, and a blue one."""
    paths = [tmp_path / name for name in ("red.png", "none.png", "blue [b].png")]
    Image.new("RGB", (8, 8), (255, 0, 0)).save(paths[0])
    paths[1].write_text("this is text")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(paths[2])
    return list(map(str, paths))


def test_what_no_class_is_probable_enough_for_is_unknown(
    start: Start, images: list[str], tmp_path: Path
) -> None:
    run, grey = str(write_run(tmp_path / "run", threshold=0.5)), str(tmp_path / "grey.png")
    Image.new("RGB", (8, 8), (90, 90, 90)).save(grey)
    command = start("predict", run, images[0], grey, "--top", "2")
    assert command.ends() == 0
    assert command.stdout.splitlines() == [
        images[0],
        "   66.67%  #############         red",
        "   16.67%  ###                   green",
        f"{grey}: unknown (no class reaches 50.00%)",
        "   33.33%  #######               red",
        "   33.33%  #######               green",
    ]
    command = start("predict", run, images[0], grey, "--top", "2", "--json")
    assert command.ends() == 0
    answers = [json.loads(line) for line in command.stdout.splitlines()]
    assert [list(each) for each in answers] == [["image", "predictions", "unknown"]] * 2
    assert [each["unknown"] for each in answers] == [False, True]
    assert [each["predictions"][0]["label"] for each in answers] == ["red", "red"]


@pytest.mark.main_path
def test_images_are_answered_for_in_their_order(
    start: Start, net: list[str], images: list[str]
) -> None:
    command = start("predict", *net, *images)
    assert command.ends() == 1
    assert command.stdout.splitlines() == [
        images[0],
        "   66.67%  #############         red",
        "   16.67%  ###                   moss green",
        "   16.67%  ###                   blue",
        images[2],
        "   66.67%  #############         blue",
        "   16.67%  ###                   red",
        "   16.67%  ###                   moss green",
    ]
    assert command.stderr.startswith(f"dist-net predict: {images[1]}: ")
    assert command.stderr.count("\n") == 1


LOADED = """
import json, os, sys
from dist_net.cli import main
for words in json.load(sys.stdin):
    main(words)
    print("numba" in sys.modules)
print(len(os.listdir("/proc/self/task")))
"""


@pytest.mark.parametrize("rows", [False, True])
def test_few_inputs_are_answered_without_loading_numba(
    net: list[str], images: list[str], tmp_path: Path, rows: bool
) -> None:
    pytest.importorskip("numba")
    commands = []
    for count in (1, 15, 16):
        inputs = [images[0]] * count
        if rows:
            inputs = [str(tmp_path / f"{count}-{part}.npy") for part in range(2)]
            for path, size in zip(inputs, (1, count - 1), strict=True):
                np.save(path, np.zeros((size, 8, 8, 3), np.float32))
        commands.append(["predict", *net, *inputs])
    result = subprocess.run(
        [sys.executable, "-c", LOADED],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        check=True,
    )
    lines = result.stdout.splitlines()
    assert [line for line in lines if line in ("True", "False")] == ["False", "False", "True"]


def test_a_program_is_answered_in_a_line_for_each(
    start: Start, net: list[str], images: list[str]
) -> None:
    command = start("predict", *net, *images, "--json", "--top", "1")
    assert command.ends() == 1
    red, none, blue = map(json.loads, command.stdout.splitlines())
    assert red == {
        "image": images[0],
        "predictions": [{"index": 0, "label": "red", "probability": pytest.approx(2 / 3)}],
    }
    assert none.keys() == {"image", "error"}
    assert none["image"] == images[1]
    assert none["error"].startswith(f"{images[1]}: not an image; expected one of JPEG")
    assert blue["predictions"][0]["label"] == "blue"
    assert command.stderr == ""


def test_odd_names_of_files_are_printed(start: Start, net: list[str], tmp_path: Path) -> None:
    odd = str(tmp_path / "a\udcffb.png")
    Image.new("RGB", (8, 8), (0, 0, 255)).save(odd, "PNG")
    command = start("predict", *net, odd, "--top", "1")
    assert command.ends() == 0, command.stderr
    assert command.stdout.splitlines()[0].endswith(r"a\udcffb.png")
    as_json = start("predict", *net, odd, "--json").result()
    assert as_json["image"] == odd


def test_what_pillow_warns_of_is_not_shown(start: Start, net: list[str], tmp_path: Path) -> None:
    path = tmp_path / "exif.jpg"
    Image.new("RGB", (8, 8), (255, 0, 0)).save(path, exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff")
    command = start("predict", *net, str(path))
    assert command.ends() == 0
    assert command.stderr == ""


def test_a_run_says_what_images_show(start: Start, tmp_path: Path) -> None:
    run = tmp_path / "run"
    start("train", "digits", "--epochs", "4", "--run-dir", str(run), "--json").result()
    digits = dataset_named("digits")
    paths = [str(tmp_path / f"{number}.png") for number in range(40)]
    for path, image in zip(paths, digits.test_inputs, strict=False):
        Image.fromarray(np.asarray(image)).save(path)
    enlarged = str(tmp_path / "enlarged.png")
    Image.fromarray(np.kron(digits.test_inputs[0], np.ones((50, 50), np.uint8))).save(enlarged)
    for model in (run, RunDirectory(run).checkpoint):
        command = start("predict", str(model), *paths, enlarged, "--json")
        assert command.ends() == 0, command.stderr
        answers = [json.loads(line)["predictions"] for line in command.stdout.splitlines()]
        right = [
            answer[0]["label"] == str(label)
            for answer, label in zip(answers, digits.test_targets, strict=False)
        ]
        assert sum(right) > 30
        assert answers[-1][0]["label"] == answers[0][0]["label"]
        assert sum(each["probability"] for each in answers[0]) <= 1.000001
    labels = tmp_path / "labels"
    labels.write_text("".join(f"digit {number}\n" for number in range(10)))
    command = start("predict", str(run), paths[0], "--labels", str(labels), "--json")
    assert command.result()["predictions"][0]["label"] == f"digit {answers[0][0]['label']}"


def test_a_published_classifier_answers_from_a_file_brought_by_hand(
    start: Start, images: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = DarknetNetwork(published("darknet").configuration())
    weights = tmp_path / "cache" / "dist-net" / "darknet" / "darknet.weights"
    weights.parent.mkdir(parents=True)
    write_weights(weights, network, seeded_weights(network, 0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached = start("predict", "darknet", images[0], "--json")
    answer = cached.result()
    assert "darknet: " in cached.stderr
    given = start("predict", "darknet", "--weights", str(weights), images[0], "--json")
    assert given.result() == answer
    assert given.stderr == ""
    for each in answer["predictions"]:
        assert each["label"] == imagenet_labels()[each["index"]]
    probabilities = [each["probability"] for each in answer["predictions"]]
    assert len(probabilities) == 5
    assert probabilities == sorted(probabilities, reverse=True)
