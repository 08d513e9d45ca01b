"""The size of an image as its file states it, read without decoding. The file may lie."""

import struct

Content = bytes | memoryview

UNKNOWN_PIXELS = 1 << 26
"""The pixels of a file that states no size within reach, or is of a rarer format."""
MAX_SEGMENTS = 256  # of a JPEG, before its size


def stated_pixels(content: Content) -> int:
    """Return the number of pixels of a JPEG, PNG, WebP, GIF or BMP file."""
    try:
        width, height = _size(content)
    except struct.error:  # the file is cut short
        return UNKNOWN_PIXELS
    return abs(width * height)


def _size(content: Content) -> tuple[int, int]:
    head = bytes(content[:16])
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(content)
    if head.startswith(b"\x89PNG"):
        return _two(">II", content, 16)
    if head.startswith(b"GIF8"):
        return _two("<HH", content, 6)
    if head.startswith(b"BM"):
        return _two("<ii", content, 18)
    if head.endswith(b"WEBPVP8X"):  # 24 bits each
        width, height = (int.from_bytes(content[i : i + 3], "little") for i in (24, 27))
        return 1 + width, 1 + height
    if head.endswith(b"WEBPVP8L"):  # 14 bits each
        (bits,) = struct.unpack_from("<I", content, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if head.endswith(b"WEBPVP8 "):
        width, height = _two("<HH", content, 26)
        return width & 0x3FFF, height & 0x3FFF
    return UNKNOWN_PIXELS, 1


def _jpeg_size(content: Content) -> tuple[int, int]:
    """Return the size in the first frame header, SOF0 to SOF15 (ITU-T T.81, B.2.2)."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        marker, length = _two(">HH", content, place)
        if 0xFFC0 <= marker <= 0xFFCF and marker not in (0xFFC4, 0xFFC8, 0xFFCC):
            height, width = _two(">HH", content, place + 5)
            return width, height
        place += 1 if marker == 0xFFFF else 2 + length  # fill bytes may precede a marker
    return UNKNOWN_PIXELS, 1


def _two(layout: str, content: Content, place: int) -> tuple[int, int]:
    first, second = struct.unpack_from(layout, content, place)
    return first, second
