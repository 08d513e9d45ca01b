"""Letterboxing and decoding, pixel by pixel, against the functions of the reference program itself.

They are called in a process of their own: the library brings its own OpenCV with it.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from dist_net.images.decoding import load_image
from dist_net.images.fitting import letterbox, resize

LIBRARY = Path("/usr/lib/darknet/libdarknet.so")
IMAGES = Path("/usr/share/darknet/data")

pytestmark = pytest.mark.skipif(
    not LIBRARY.is_file(), reason=f"needs Debian's package darknet: there is no {LIBRARY}"
)

REFERENCE = """
import ctypes, sys
import numpy as np

class Image(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in "whc"] + [("data", ctypes.POINTER(ctypes.c_float))]

def of(array):
    planes = np.ascontiguousarray(array.transpose(2, 0, 1))
    pointer = planes.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return planes, Image(array.shape[1], array.shape[0], array.shape[2], pointer)

def array(image):
    planes = np.ctypeslib.as_array(image.data, (image.c, image.h, image.w))
    return planes.transpose(1, 2, 0).copy()

library = ctypes.CDLL(sys.argv[1])
for function in (library.letterbox_image, library.resize_image):
    function.restype, function.argtypes = Image, [Image, ctypes.c_int, ctypes.c_int]
for function in (library.load_image_color, library.load_image_stb):
    function.restype = Image
library.load_image_color.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_int]
library.load_image_stb.argtypes = [ctypes.c_char_p, ctypes.c_int]

asked, answers = np.load(sys.argv[2]), {}
for name in asked.files:
    given = asked[name]
    kind, _, *sizes = name.split(" ")
    if kind == "decode":
        answers[name] = array(library.load_image_color(str(given).encode(), 0, 0))
    elif kind == "stb":
        answers[name] = array(library.load_image_stb(str(given).encode(), 3))
    else:
        height, width = map(int, sizes)
        planes, image = of(given)
        answers[name] = array(getattr(library, kind)(image, width, height))
np.savez(sys.argv[3], **answers)
"""

Arrays = dict[str, NDArray[Any]]


@pytest.fixture
def reference(tmp_path: Path) -> Any:
    """Asks the reference for ``"function number height width"`` of an array, of many at once."""

    def ask(asked: Arrays) -> Arrays:
        given, answered = tmp_path / "asked.npz", tmp_path / "answered.npz"
        np.savez(given, **asked)  # type: ignore[arg-type]
        command = [sys.executable, "-c", REFERENCE, str(LIBRARY), str(given), str(answered)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        with np.load(answered) as answers:
            return {name: answers[name] for name in asked}

    return ask


def drawn(generator: np.random.Generator, kind: str, count: int) -> Arrays:
    """Random images, and sizes to make of them, from a few pixels to some hundreds."""
    asked: Arrays = {}
    while len(asked) < count:
        largest = int(generator.choice([8, 40, 300, 700]))
        height, width = generator.integers(1, largest, 2)
        new_height, new_width = generator.integers(2, min(largest, 300), 2)
        if kind == "letterbox_image":
            scale = min(new_height / height, new_width / width)
            if scale * height < 2 or scale * width < 1:  # undefined in the reference
                continue
        asked[f"{kind} {len(asked)} {new_height} {new_width}"] = generator.integers(
            0, 256, (height, width, 3), np.uint8
        )
    return asked


@pytest.mark.parametrize(
    ("kind", "ours"), [("letterbox_image", letterbox), ("resize_image", resize)]
)
def test_it_is_the_reference_pixel_by_pixel(reference: Any, kind: str, ours: Any) -> None:
    asked = drawn(np.random.default_rng(0), kind, 200)
    answers = reference({name: pixels / np.float32(255) for name, pixels in asked.items()})
    quirks = 0
    for name, answer in answers.items():
        height, width = map(int, name.split()[2:])
        np.testing.assert_allclose(
            ours(asked[name], height, width), answer, rtol=0, atol=1e-6, err_msg=name
        )
        quirks += bool(kind == "resize_image" and answer[-1].max() < 0.01)
    assert kind != "resize_image" or quirks  # the dark last row is among them


@pytest.mark.parametrize("size", [224, 256, 448])
def test_the_packages_photographs_make_the_same_inputs(reference: Any, size: int) -> None:
    """Debian's program decodes JPEG with the library that Pillow does."""
    paths = sorted(IMAGES.glob("*.jpg"))
    assert paths
    decoded = reference({f"decode {path.name}": np.array(str(path)) for path in paths})
    boxed = reference(
        {
            f"letterbox_image {path.name} {size} {size}": decoded[f"decode {path.name}"]
            for path in paths
        }
    )
    for path, answer in zip(paths, boxed.values(), strict=True):
        ours = letterbox(load_image(path), size, size)
        np.testing.assert_allclose(ours, answer, rtol=0, atol=1e-6, err_msg=path.name)


def test_the_originals_own_decoder_differs_by_little(reference: Any) -> None:
    paths = sorted(IMAGES.glob("*.jpg"))
    decoded = reference({f"stb {path.name}": np.array(str(path)) for path in paths})
    for path, answer in zip(paths, decoded.values(), strict=True):
        difference = np.abs(load_image(path) - answer * 255)
        assert difference.max() <= 3.01, path.name
        assert difference.mean() <= 0.2, path.name
