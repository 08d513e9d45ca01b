"""Images of every kind, made here, and what cannot be one: a clear line each."""

import io
import os
import re
import struct
import sys
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from dist_net.data.image_folder import refusal_of_name
from dist_net.errors import ImageError
from dist_net.images import decoding
from dist_net.images.decoding import Pixels, grey, load_image
from dist_net.images.fitting import letterbox, pad, resize
from naming import naming

pytestmark = [  # Pillow warns beside what it does
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning"),
]

WHITE, RED, BLACK = (255, 255, 255), (255, 0, 0), (0, 0, 0)


def noise(height: int, width: int, channels: int = 3) -> Pixels:
    generator = np.random.default_rng(height * 1000 + width)
    return generator.integers(0, 256, (height, width, channels), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    """A PNG put together by hand, for what Pillow does not write."""
    parts = {"IHDR": struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0), **chunks}
    parts |= {"IDAT": zlib.compress(rows), "IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for name, body in parts.items():
        typed = name.encode() + body
        content += struct.pack(">I", len(body)) + typed + struct.pack(">I", zlib.crc32(typed))
    return content


# Decoding


AVIF = pytest.param(
    "AVIF", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF")
)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG", AVIF])
def test_an_image_is_read_in_every_format(kind: str) -> None:
    image = Image.new("RGB", (32, 16), RED)
    image.paste((0, 0, 255), (16, 0, 32, 16))
    options = {"WEBP": {"lossless": True}, "AVIF": {"quality": 100}}.get(kind, {})
    pixels = load_image(encoded(image, kind, **options))
    assert (refusal_of_name(f"cat/a.{kind}") is None) is (kind != "PPM")
    assert (pixels.shape, pixels.dtype) == ((16, 32, 3), np.uint8)
    assert np.abs(pixels[0, 0].astype(int) - RED).max() <= 3
    assert np.abs(pixels[15, 31].astype(int) - (0, 0, 255)).max() <= 3


def test_heic_is_read_with_pillow_heif_and_refused_by_its_name_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "image.HEIC"
    decoding.iso_formats.cache_clear()
    assert refusal_of_name(path.name) is None  # registers the plugin
    Image.new("RGB", (32, 16), RED).save(path, "HEIF", quality=100)
    assert np.abs(load_image(path).astype(int) - RED).max() <= 4

    decoding.iso_formats.cache_clear()
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    monkeypatch.delitem(Image.OPEN, "HEIF")
    assert re.search(naming("pip install pillow-heif"), refusal_of_name(path.name) or "")
    with pytest.raises(ImageError, match=naming("pip install pillow-heif")):
        load_image(path.read_bytes(), formats=decoding.BOUNDED_FORMATS)
    decoding.iso_formats.cache_clear()


def test_a_path_bytes_and_an_open_file_give_the_same(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    content = encoded(Image.fromarray(pixels))
    path = tmp_path / "image.png"
    path.write_bytes(content)
    with path.open("rb") as file:
        for source in (path, str(path), content, file):
            np.testing.assert_array_equal(load_image(source), pixels)


def test_a_grey_image_has_three_equal_channels() -> None:
    pixels = load_image(encoded(Image.fromarray(noise(3, 4, 1)[:, :, 0])))
    np.testing.assert_array_equal(pixels, np.repeat(noise(3, 4, 1), 3, axis=2))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_sixteen_bits_the_upper_eight_count(kind: str) -> None:
    values = np.array([[0, 255, 256, 0x7FFF, 0xFFFF]], np.uint16)
    pixels = load_image(encoded(Image.fromarray(values), kind))
    assert pixels[0, :, 0].tolist() == [0, 0, 1, 0x7F, 255]
    assert (pixels == pixels[:, :, :1]).all()


def test_pixels_of_thirty_two_bits_are_refused() -> None:
    real = encoded(Image.fromarray(np.full((2, 2), 0.5, np.float32)), "TIFF")
    large = encoded(Image.fromarray(np.full((2, 2), 1 << 20, np.int32)), "TIFF")
    for content in (real, large):
        with pytest.raises(ImageError, match=naming("image", "32 bits", 8, 16)):
            load_image(content)


def row(mode: str, *pixels: Any, kind: str = "PNG", **options: Any) -> bytes:
    """An image with these pixels side by side; for a palette, red and black."""
    image = Image.new(mode, (len(pixels), 1))
    if mode == "P":
        image.putpalette([*RED, *BLACK])
    image.putdata(pixels)
    return encoded(image, kind, **options)


GREY_16, COLOUR_16 = struct.pack(">H", 0x1234), struct.pack(">3H", 0x1234, 0x5678, 0x9ABC)
CONVERTED = {
    "one bit": (row("1", 0, 1, 0), [BLACK, WHITE, BLACK]),
    "a palette": (row("P", 0, 1), [RED, BLACK]),
    "alpha": (
        row("RGBA", (*RED, 255), (*RED, 0), (*BLACK, 128)),
        [RED, WHITE, (127, 127, 127)],
    ),
    "grey and alpha": (row("LA", (0, 255), (0, 0)), [BLACK, WHITE]),
    "a transparent colour of a palette": (row("P", 0, 1, transparency=1), [RED, WHITE]),
    "the same in a GIF": (row("P", 0, 1, kind="GIF", transparency=1), [RED, WHITE]),
    "a transparent colour": (row("RGB", RED, BLACK, transparency=BLACK), [RED, WHITE]),
    # Of colours of 16 bits the upper 8 are shown, but all count for what is transparent.
    "a grey PGM of 16 bits": (
        b"P5 3 1 65535\n" + bytes([0, 255, 0x7F, 1, 255, 255]),
        [BLACK, (0x7F, 0x7F, 0x7F), WHITE],
    ),
    "colour of 16 bits": (
        png(2, 1, 16, 2, struct.pack(">x6H", 0xFFFF, 0x0100, 0x00FF, 0x1234, 0x8000, 0)),
        [(255, 1, 0), (0x12, 0x80, 0)],
    ),
    "a transparent grey of 16 bits": (
        png(3, 1, 16, 0, struct.pack(">x3H", 0x1234, 0x12FF, 0x3400), tRNS=GREY_16),
        [WHITE, (0x12, 0x12, 0x12), (0x34, 0x34, 0x34)],
    ),
    "a transparent colour of 16 bits": (
        png(
            2,
            1,
            16,
            2,
            b"\0" + COLOUR_16 + struct.pack(">3H", 0x1334, 0x5678, 0x9ABC),
            tRNS=COLOUR_16,
        ),
        [WHITE, (0x13, 0x56, 0x9A)],
    ),
}


@pytest.mark.parametrize(("content", "pixels"), CONVERTED.values(), ids=CONVERTED)
def test_colours_become_eight_bits_of_red_green_and_blue_on_white(
    content: bytes, pixels: list[tuple[int, int, int]]
) -> None:
    assert [*map(tuple, load_image(content)[0].tolist())] == pixels


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_becomes_red_green_and_blue(kind: str) -> None:
    image = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    pixels = load_image(encoded(image, kind))
    assert np.abs(pixels.astype(int) - RED).max() <= 3


# What a viewer shows of this, for each orientation: 1 at its corner, 2 beside it, 3 below.
UPRIGHT = np.array([[1, 2, 0], [3, 0, 0]], np.uint8)
STORED = {
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: UPRIGHT.T[::-1],
    7: UPRIGHT.T[::-1, ::-1],
    8: UPRIGHT.T[:, ::-1],
}


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_an_image_stands_as_a_viewer_shows_it(orientation: int, kind: str) -> None:
    image = Image.fromarray(np.ascontiguousarray(STORED[orientation] * 80)).convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = load_image(encoded(image, kind, exif=exif, **options))
    np.testing.assert_array_equal(pixels[:, :, 0], UPRIGHT * 80)


def test_exif_that_makes_no_sense_does_not_matter() -> None:
    image = Image.new("RGB", (8, 4), RED)
    strange = Image.Exif()
    strange[0x0112] = 99
    for exif in (strange, b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\xff\xff"):
        assert load_image(encoded(image, "JPEG", exif=exif)).shape == (4, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_there_is_the_first_image(kind: str) -> None:
    first, second = Image.new("RGB", (4, 4), RED), Image.new("RGB", (4, 4), BLACK)
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encoded(first, kind, save_all=True, append_images=[second], **options)
    with Image.open(io.BytesIO(content)) as image:
        assert image.n_frames == 2
    assert (load_image(content) == RED).all()


# What is no image


def refused(source: Any, says: str, **options: Any) -> None:
    with pytest.raises(ImageError, match=says) as caught:
        load_image(source, **options)
    assert "\n" not in str(caught.value)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", r"none\.png.*No such file")
    refused(tmp_path, f"{tmp_path}.*Is a directory")
    refused("a\0b", "null")


def test_a_pipe_is_refused() -> None:
    descriptors = os.pipe()
    os.close(descriptors[1])
    with open(descriptors[0], "rb") as file:  # noqa: PTH123 - a descriptor has no path
        refused(file, "^image: .*pipe")


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.jpg"
    path.touch()
    refused(path, r"empty\.jpg.*0 bytes")
    refused(b"", "^image: .*0 bytes")


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a\nb"
    path.write_bytes(b"hello, world\n" * 100)
    refused(path, "a b: .*JPEG, PNG")
    # Pillow would have another program draw it.
    refused(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "JPEG, PNG")


@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_an_image_without_pixels_is_refused(width: int, height: int) -> None:
    for content in (png(width, height, 8, 2, b""), b"P6 %d %d 255\n" % (width, height)):
        refused(content, "image: ")


def test_too_many_pixels_are_refused_before_they_are_decoded() -> None:
    # A header that promises a million times more than there is.
    refused(png(9000, 9000, 8, 2, b"\0"), "9000x9000.*81,000,000.*67,108,864")
    refused(png(50_000, 50_000, 8, 2, b"\0"), "2500000000.*67,108,864")
    image = encoded(Image.new("RGB", (30, 20)))
    refused(image, "30x20.*600.*599", max_pixels=599)
    assert load_image(image, max_pixels=600).shape == (20, 30, 3)


def with_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG with so many scans more, which are empty: 12 or more bytes each."""
    content = encoded(Image.new("L", (side, side)), "JPEG", progressive=True)
    table = b"\xff\xc4\0\x14\x10\1" + bytes(15) + b"\xe0"  # one code: a run of 2^14 blocks or more
    scan = b"\xff\xda\0\x08\1\1\0\1\x3f\0" + b"\0\1"
    return content[:-2] + table + scans * scan + content[-2:]


def test_a_jpeg_whose_scans_take_out_of_proportion_is_refused() -> None:
    assert load_image(with_scans(64, 100)).shape == (64, 64, 3)
    assert load_image(with_scans(64, 40), max_pixels=64 * 64).shape == (64, 64, 3)
    refused(with_scans(64, 100), r"1\d\d scans.*4,096 pixels.*64", max_pixels=4096)
    refused(with_scans(2048, 5000), r"5,0\d\d scans.*4,194,304 pixels.*1,024")


@pytest.mark.parametrize("kind", ["P1", "P2", "P3"])
def test_a_ppm_file_of_text_is_refused(kind: str) -> None:
    refused(f"{kind} 1 1 255\n".encode() + b"#\n" * 1000 + b"1 1 1\n", "text PPM")


def test_a_png_with_many_colour_profiles_is_refused() -> None:
    body = b"name\0\0" + zlib.compress(bytes(1 << 20))
    typed = b"iCCP" + body
    chunk = struct.pack(">I", len(body)) + typed + struct.pack(">I", zlib.crc32(typed))
    image = encoded(Image.new("RGB", (8, 8)))
    assert load_image(image[:33] + 2 * chunk + image[33:]).shape == (8, 8, 3)
    refused(image[:33] + 17 * chunk + image[33:], "17.*16")


def tiff(order: str, *extra: tuple[int, int, int], side: int = 8, offsets: int = 273) -> bytes:
    """An uncompressed grey TIFF; ``extra`` are its (tag, count, value) beside the usual."""
    usual = [(256, 1, side), (257, 1, side), (258, 1, 8), (259, 1, 1), (262, 1, 1), (277, 1, 1)]
    tags = sorted([*usual, *extra])
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, *field) for tag, *field in tags)
    directory = struct.pack(f"{order}H", len(tags)) + entries + bytes(4)
    header = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8)
    (strips,) = (count for tag, count, _ in tags if tag == offsets)
    return (header + directory).ljust(300, b"\0") + strips * struct.pack(f"{order}I", 100)


ORDERS = pytest.mark.parametrize("order", ["<", ">"])


@ORDERS
def test_a_tiff_of_many_strips_is_refused(order: str) -> None:
    content = tiff(order, (273, 70_000, 300), (278, 1, 1), (279, 1, 8))
    refused(content, "70,000 strips of 8 bytes.*16,000,000", max_pixels=1_000_000)


@ORDERS
@pytest.mark.parametrize("side", [46_000, 1 << 31])
def test_a_tiff_whose_tile_is_larger_than_an_image_may_be_is_refused(order: str, side: int) -> None:
    """The decoder would allocate a tile of 2 GB for an image of 8x8 pixels."""
    tile = [(322, 1, side), (323, 1, side), (324, 1, 300), (325, 1, 64)]
    refused(tiff(order, *tile, offsets=324), f"1 strips of {side * side:,} bytes.*1,073,741,824")
    small = [(322, 1, 16), (323, 1, 16), (324, 1, 0), (325, 1, 256)]
    assert load_image(tiff(order, *small, offsets=324).ljust(999, b"\0")).shape == (8, 8, 3)


@ORDERS
def test_a_tiff_whose_strips_share_their_bytes_is_refused(order: str) -> None:
    """Each of them would be decoded over the same million pixels."""
    strips = [(273, 60_000, 300), (278, 1, 1000), (279, 1, 1_000_000)]
    content = tiff(order, *strips, side=1000).ljust(2_000_000, b"\0")
    refused(content, "60,000 strips of 1,000,000 bytes.*1,073,741,824")


def test_tags_of_exif_that_share_their_bytes_take_no_more_memory_than_the_file() -> None:
    count, size = 3000, 1_000_000
    start = 8 + 2 + 12 * count + 4
    entries = (struct.pack("<HHII", 300 + each, 7, size, start) for each in range(count))
    directory = struct.pack("<IH", 8, count) + b"".join(entries) + bytes(4 + size)
    rows = bytes((1 + 3 * 8) * 8)
    tracemalloc.start()
    assert load_image(png(8, 8, 8, 2, rows, eXIf=b"II*\0" + directory)).shape == (8, 8, 3)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 20 * size


def test_an_image_of_a_format_that_takes_more_memory_may_have_fewer_pixels() -> None:
    image = Image.new("RGB", (30, 20))
    for kind, most in {"PNG": 600, "WEBP": 400}.items():
        content = encoded(image, kind)
        refused(content, f"30x20.*600.*{most - 1}", max_pixels=599)
        assert load_image(content, max_pixels=600 * 600 // most).shape == (20, 30, 3)


@pytest.mark.parametrize("kind", ["TIFF", AVIF])
def test_of_strangers_only_formats_with_bounded_memory_are_read(kind: str) -> None:
    content = encoded(Image.new("RGB", (64, 64), RED), kind)
    assert load_image(content).shape == (64, 64, 3)
    refused(content, "not an image.*JPEG.*PPM", formats=decoding.BOUNDED_FORMATS)


FORMATS = ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"]


@pytest.mark.parametrize("kind", FORMATS)
def test_an_image_that_is_cut_short_is_refused(kind: str) -> None:
    content = encoded(Image.fromarray(noise(40, 50)), kind)
    for kept in (5, 20, len(content) // 4, len(content) // 2, len(content) * 3 // 4):
        refused(content[:kept], "damaged or cut short|not an image")


@pytest.mark.parametrize("kind", FORMATS)
def test_whatever_is_damaged_is_refused_in_one_line_or_read(kind: str) -> None:
    content = encoded(Image.fromarray(noise(16, 16)), kind)
    generator = np.random.default_rng(0)
    read, errors = 0, []
    for _ in range(300):
        damaged = bytearray(content)
        for at in generator.integers(0, min(len(content), 200), 3):
            damaged[at] = generator.integers(256)
        try:
            read += load_image(bytes(damaged), max_pixels=1 << 16).dtype == np.uint8
        except ImageError as error:
            errors.append(str(error))
    assert read + len(errors) == 300
    assert errors
    assert not [error for error in errors if "\n" in error]


# From pixels to inputs


EMPTY_CHUNK = bytes(4) + b"tIME" + struct.pack(">I", zlib.crc32(b"tIME"))


@pytest.mark.parametrize(
    ("begin", "filler"),
    [
        (b"\xff\xd8\xff", b"\0"),
        (b"\xff\xd8\xff", b"\xff\0"),
        (b"\xff\xd8", b"\xff\xfe\0\2"),
        (png(8, 8, 8, 2, b"")[:33], EMPTY_CHUNK),
        (b"GIF89a\x08\0\x08\0\0\0\0!\xfe", b"\1x"),
        (b"P6", b" "),
    ],
    ids=["zeros", "no markers", "comments", "chunks", "blocks", "spaces"],
)
def test_a_file_in_which_a_decoder_gets_lost_is_refused(
    monkeypatch: pytest.MonkeyPatch, begin: bytes, filler: bytes
) -> None:
    monkeypatch.setattr(decoding, "MAX_READS", 1000)
    file = io.BytesIO(begin + filler * 2000)
    with pytest.raises(ImageError, match=naming("1,000 reads")):
        load_image(file)
    assert file.tell() < 20_000


def test_a_letterbox_keeps_proportions_and_fills_up_with_grey() -> None:
    wide = letterbox(noise(50, 100), 64, 64)
    assert (wide.shape, wide.dtype) == ((64, 64, 3), np.float32)
    assert (wide[:16] == 0.5).all()
    assert (wide[48:] == 0.5).all()
    assert (wide[16:48] != 0.5).all()
    tall = letterbox(noise(100, 50), 64, 64)
    assert (tall[:, :16] == 0.5).all()
    assert (tall[:, 48:] == 0.5).all()


def test_new_sides_and_offsets_are_rounded_down() -> None:
    boxed = letterbox(np.zeros((10, 29, 3), np.uint8), 20, 20)
    # 20 * 10 / 29 = 6.9 rows, and 14 / 2 above them.
    filled = (boxed == 0.5).all(axis=(1, 2))
    assert np.flatnonzero(~filled).tolist() == [7, 8, 9, 10, 11, 12]


def test_an_image_of_the_right_size_is_only_scaled() -> None:
    pixels = noise(32, 48)
    np.testing.assert_array_equal(letterbox(pixels, 32, 48), pixels / np.float32(255))


def test_resizing_aligns_the_corners() -> None:
    resized = resize(np.array([[[0], [100], [200]]], np.uint8), 1, 5)
    np.testing.assert_allclose(resized[0, :, 0] * 255, [0, 50, 100, 150, 200], rtol=1e-6)
    resized = resize(np.array([[[0]], [[100]], [[200]]], np.uint8), 5, 1)
    np.testing.assert_allclose(resized[:, 0, 0] * 255, [0, 50, 100, 150, 200], rtol=1e-6)


def test_resizing_is_bilinear_in_two_passes() -> None:
    """Against the formula, pixel by pixel, in float64; where rounding makes no difference."""
    pixels, height, width = noise(23, 31), 11, 46
    expected = np.zeros((height, width, 3))
    for row in range(height):
        for column in range(width):
            y, x = row * 22 / 10, column * 30 / 45
            top, left = int(y + 1e-9), int(x + 1e-9)
            square = pixels[top : top + 2, left : left + 2] / 255
            for i, j in np.ndindex(square.shape[:2]):
                weight = (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                expected[row, column] += weight * square[i, j]
    np.testing.assert_allclose(resize(pixels, height, width), expected, atol=2e-6)


@pytest.mark.parametrize("shape", [(23, 31, 3), (9, 50, 1), (5, 4, 3)])
def test_resizing_rounds_where_the_reference_does(shape: tuple[int, int, int]) -> None:
    """Pixel by pixel, in float32, in the order of its two passes."""
    one, pixels, height, width = np.float32(1), noise(*shape), 11, 21
    resized = resize(pixels, height, width)
    scale_y, scale_x = (
        np.float32(old - 1) / np.float32(new - 1)
        for old, new in zip(shape[:2], (height, width), strict=True)
    )
    for row in range(height):
        for column in range(width - 1):
            y, x = np.float32(row) * scale_y, np.float32(column) * scale_x
            top, left = int(y), int(x)
            y, x = y - np.float32(top), x - np.float32(left)
            square = pixels[top : top + 2, left : left + 2] / np.float32(255)
            along_x = square[:, 0] * (one - x) + square[:, 1] * x
            expected = along_x[0] * (one - y)
            if row < height - 1:
                expected = expected + along_x[1] * y
            assert (resized[row, column] == expected).all()


def test_the_last_row_is_dark_where_its_place_is_rounded_down() -> None:
    """As the reference has it; the last column does not suffer it."""
    sizes = [
        (size, new)
        for size in range(2, 40)
        for new in range(2, 40)
        if np.float32(new - 1) * (np.float32(size - 1) / np.float32(new - 1)) < size - 1
    ]
    assert sizes
    for size, new in sizes:
        bright = np.full((size, size, 1), 255, np.uint8)
        resized = resize(bright, new, new)
        assert (resized[-1] < 0.01).all()
        assert (resized[:-1] > 0.99).all()


def test_an_image_too_narrow_for_its_box_is_refused() -> None:
    for shape in ((1, 10_000, 3), (10_000, 1, 3)):
        with pytest.raises(ImageError, match=r"(10000x1|1x10000) .*256x256"):
            letterbox(np.zeros(shape, np.uint8), 256, 256)


def test_a_single_row_or_pixel_can_be_boxed() -> None:
    for shape in ((1, 100, 3), (100, 1, 3), (1, 1, 3)):
        boxed = letterbox(np.full(shape, 255, np.uint8), 100, 100)
        assert set(boxed.ravel().tolist()) <= {0.5, 1.0}
        assert 1.0 in boxed


def test_only_what_is_looked_at_is_converted() -> None:
    pixels = np.zeros((3000, 2000, 3), np.uint8)
    tracemalloc.start()
    letterbox(pixels, 256, 256)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < pixels.nbytes


def test_fitting_looks_at_every_pixel() -> None:
    stripes = np.zeros((280, 280, 1), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(pad(stripes, 28, 28).astype(int) - 128).max() <= 8


def test_grey_is_the_luma() -> None:
    pixels = np.array([[RED, (0, 255, 0), (0, 0, 255), WHITE]], np.uint8)
    assert grey(pixels)[0, :, 0].tolist() == [76, 150, 29, 255]
