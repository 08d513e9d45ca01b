"""Bodies that are compressed, in both directions; pure. Sizes are limited where they are made."""

from __future__ import annotations

import zlib

from dist_net.errors import BadRequestError, RequestTooLargeError, UnsupportedEncodingError
from dist_net.serving.requests import Payload

# Below this many bytes compression costs more than it saves: a packet carries about as much.
WORTHWHILE_BYTES = 1024
# zlib's window bits: 15 with its own header (which HTTP calls deflate), 16 more with gzip's.
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS + 16}
_FASTEST = 1


def decompress(body: Payload, encoding: str, limit_bytes: int) -> bytes:
    """What ``body`` holds; ``encoding`` is that of the header Content-Encoding.

    Never makes more than ``limit_bytes``, and one. Raises UnsupportedEncodingError for an encoding
    that is neither gzip nor deflate, RequestTooLargeError beyond the limit, BadRequestError for a
    damaged body.
    """
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise UnsupportedEncodingError(
            f"a body's Content-Encoding is {encoding[:40]!r}; expected gzip, deflate or none"
        )
    decompressor = zlib.decompressobj(window_bits)
    try:
        content = decompressor.decompress(body, limit_bytes + 1)
    except zlib.error as error:
        raise BadRequestError(f"the body is damaged: no {encoding} ({error})") from error
    if len(content) > limit_bytes:
        raise RequestTooLargeError(
            f"the body decompresses to more than {limit_bytes:,} bytes; expected no more"
        )
    if not decompressor.eof or decompressor.unused_data:
        wrong = "something follows it" if decompressor.eof else "it is cut short"
        raise BadRequestError(f"the body is damaged: no {encoding}: {wrong}")
    return content


def compress(content: bytes, encoding: str) -> bytes:
    """``content`` with ``encoding``, one that ``accepted_encoding`` gave."""
    compressor = zlib.compressobj(_FASTEST, wbits=_WINDOW_BITS[encoding])
    return compressor.compress(content) + compressor.flush()


def accepted_encoding(header: str) -> str | None:
    """What a client takes, of what is known here; ``header`` is its Accept-Encoding.

    That is the first of those that it does not refuse by ``q=0``; None: no compression.
    """
    for choice in header.split(","):
        name, _, weight = choice.replace(" ", "").lower().partition(";q=")
        is_refused = weight != "" and weight.strip("0.") == ""
        if name in _WINDOW_BITS and not is_refused:
            return name
    return None
