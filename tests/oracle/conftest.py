"""Other people's programs, run for real; a test is skipped, and says so, where one is missing."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_net.nets.darknet.configuration import write_configuration
from dist_net.nets.darknet.darknet_network import DarknetNetwork
from dist_net.nets.darknet.weights import write_weights

IMAGES = Path("/usr/share/darknet/data")
DEADLINE_S = 120
ANSWER = re.compile(r" *(-?[\d.]+)%: class(\d+)$", re.MULTILINE)

Answers = list[dict[int, float]]


class DarknetProgram:
    """Debian's ``darknet``, which is given files in its own formats."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def predict(
        self, network: DarknetNetwork, vector: NDArray[np.float32], images: list[Path], top: int
    ) -> Answers:
        """The ``top`` largest outputs for each image, largest first, by their number."""
        weights = self.directory / "net.weights"
        write_weights(weights, network, vector)
        try:
            return self.predict_by_file(network, weights, images, top)
        finally:
            weights.unlink()  # hundreds of megabytes

    def predict_by_file(
        self, network: DarknetNetwork, weights: Path, images: list[Path], top: int
    ) -> Answers:
        """The same, with the weights in a file.

        The program prints percents with two digits. It is started once: a name that is not on the
        command line it asks for on its standard input.
        """
        outputs = int(np.prod(network.layers[-1].output_shape))
        files = {name: self.directory / name for name in ("names", "net.data", "net.cfg")}
        files["names"].write_text("".join(f"class{i}\n" for i in range(outputs)))
        files["net.data"].write_text(f"names={files['names']}\ntop={top}\n")
        write_configuration(network.configuration, files["net.cfg"])
        command = ["darknet", "classifier", "predict", files["net.data"], files["net.cfg"], weights]
        asked_for = "".join(f"{image}\n" for image in images)
        if len(images) == 1:
            command, asked_for = [*command, *images], ""
        done = subprocess.run(
            command, input=asked_for, capture_output=True, text=True, timeout=DEADLINE_S
        )
        printed = ANSWER.findall(done.stdout)
        assert len(printed) == top * len(images), done.stdout[-1000:] + done.stderr[-1000:]
        answers = [(int(number), float(percent) / 100) for percent, number in printed]
        return [dict(answers[i : i + top]) for i in range(0, len(answers), top)]


@pytest.fixture
def darknet(tmp_path: Path) -> DarknetProgram:
    """The reference program."""
    if shutil.which("darknet") is None:
        pytest.skip("there is no `darknet` here (Debian's package darknet)")
    return DarknetProgram(tmp_path)


@pytest.fixture
def image() -> Callable[[str], Path]:
    """One of the images that the reference program comes with, by its name."""

    def find(name: str) -> Path:
        path = IMAGES / f"{name}.jpg"
        if not path.exists():
            pytest.skip(f"there is no {path} here (Debian's package darknet)")
        return path

    return find
