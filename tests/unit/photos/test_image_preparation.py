"""What a process that decodes images does with a chunk of them: rows, and reasons."""

import struct
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dist_net import fit_image
from dist_net.data.prepared_images import ImagePreprocessing
from dist_net.errors import DatasetError, FetchError, ProcessFailedError
from dist_net.photos.image_preparation import (
    ImageChunk,
    ImageJob,
    _Decoding,
    require_few_skipped,
    write_rows,
)
from naming import naming

FOUR = ImagePreprocessing((4, 4, 3), "stretch", max_pixels=10_000)
NOISE = np.random.default_rng(0).integers(0, 256, (12, 8, 3), np.uint8)


def orientation(value: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


def sixteen_bits(path: Path) -> None:
    Image.fromarray(NOISE[:, :, 0].astype(np.uint16) * 257).save(path)


def turned(path: Path) -> None:
    Image.fromarray(NOISE).save(path, exif=orientation(6))


def cmyk(path: Path) -> None:
    Image.fromarray(NOISE).convert("CMYK").save(path)


def palette(path: Path) -> None:
    Image.fromarray(NOISE).quantize(16).save(path, transparency=3)


def animation(path: Path) -> None:
    frames = [Image.fromarray(NOISE[::step]) for step in (1, -1)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def plain(path: Path) -> None:
    Image.fromarray(NOISE).save(path)


GOOD: dict[str, Callable[[Path], None]] = {
    "sixteen.png": sixteen_bits,
    "turned.jpg": turned,
    "cmyk.jpg": cmyk,
    "palette.png": palette,
    "animation.gif": animation,
    "plain.webp": plain,
    "plain.bmp": plain,
    "plain.tiff": plain,
    "żółw 1.jpg": plain,
}


def text(path: Path) -> None:
    path.write_text("no image")


def cut_short(path: Path) -> None:
    plain(path)
    path.write_bytes(path.read_bytes()[:-100])


def bomb(path: Path) -> None:
    """A PNG of 30,000 x 30,000 pixels, in a few bytes."""
    content = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 0, 0, 0, 0)
    for name, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        content += struct.pack(">I", len(body)) + name + body
        content += struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(content)


def too_large(path: Path) -> None:
    Image.new("L", (200, 100)).save(path)


def absent(path: Path) -> None:
    """Nothing; it was removed since the folder was listed."""


HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "text.png": (text, "not an image; expected one of JPEG, PNG"),
    "cut\nshort.jpg": (cut_short, "damaged or cut short: "),
    "bomb.png": (bomb, "Image size (900000000 pixels) exceeds limit"),
    "large.png": (too_large, "200x100 pixels are 20,000; expected at most 10,000"),
    "empty.gif": (Path.touch, "an empty file, 0 bytes; expected an image"),
    "absent.jpg": (absent, "No such file or directory; expected an image file"),
    "folder.jpg": (Path.mkdir, "Is a directory; expected an image file"),
}


def decode(root: Path, first_row: int, names: Iterable[str], pixels: Path | None = None) -> Any:
    return ImageJob(root, FOUR, pixels).decode(ImageChunk(first_row, list(names)))


def test_rows_are_what_serving_makes_of_the_same_files(tmp_path: Path) -> None:
    for name, draw in GOOD.items():
        draw(tmp_path / name)
    store = tmp_path / "pixels"
    store.write_bytes(bytes(48 * 11))
    assert decode(tmp_path, 2, GOOD, store) == {}
    rows = np.fromfile(store, np.uint8).reshape(11, 4, 4, 3)
    assert not rows[:2].any()
    for row, name in zip(rows[2:], GOOD, strict=True):
        np.testing.assert_array_equal(row, fit_image(tmp_path / name, (4, 4, 3), "stretch"))


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_hostile_images_are_skipped_with_the_reason(tmp_path: Path) -> None:
    for name, (draw, _) in HOSTILE.items():
        draw(tmp_path / name)
    skipped = decode(tmp_path, 0, HOSTILE)
    assert list(skipped) == list(HOSTILE)
    for name, (_, reason) in HOSTILE.items():
        assert skipped[name].startswith(reason)


def test_a_skipped_image_leaves_no_pixels_of_the_one_before(tmp_path: Path) -> None:
    plain(tmp_path / "good.bmp")
    store = tmp_path / "pixels"
    store.write_bytes(bytes(96))
    decode(tmp_path, 0, ["good.bmp", "absent.bmp"], store)
    assert not any(store.read_bytes()[48:])
    decode(tmp_path, 0, ["absent.bmp"], store)
    assert store.read_bytes() == bytes(96)


def test_a_full_disk_is_one_clear_error() -> None:
    with pytest.raises(FetchError, match=naming("/dev/full", "No space left on device")):
        write_rows(Path("/dev/full"), 0, np.zeros((2, 4, 4, 3), np.uint8))


def test_more_than_a_tenth_that_are_skipped_are_too_many() -> None:
    skipped = {f"cat/{index}.jpg": "damaged" for index in range(3)}
    require_few_skipped("photos", skipped, 30)
    with pytest.raises(DatasetError, match=naming("photos", "3 of 29", "10%", "cat/0.jpg")):
        require_few_skipped("photos", skipped, 29)


def test_of_many_skipped_images_some_are_named() -> None:
    skipped = {f"cat/{index}.jpg": "damaged" for index in range(25)}
    with pytest.raises(DatasetError, match=naming("25 of 25", "cat/2.jpg: damaged", "more")):
        require_few_skipped("photos", skipped, 25)


@pytest.mark.parametrize("exit_code", [None, 0, 3])
def test_an_image_is_not_blamed_for_a_process_that_ends_without_a_signal(
    exit_code: int | None, tmp_path: Path
) -> None:
    decoding = _Decoding(ImageJob(tmp_path, FOUR, None), 1, 1, tmp_path / "log", lambda *_: None)
    with pytest.raises(ProcessFailedError, match=naming(exit_code, tmp_path / "log")):
        decoding._reason(exit_code)
