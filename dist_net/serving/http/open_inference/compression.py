"""Bodies that are compressed, in both directions; pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from dist_net.errors import BadRequestError, RequestTooLargeError, UnsupportedEncodingError
from dist_net.serving.pool.requests import Payload

# Below this many bytes compression costs more than it saves: a packet carries about as much.
WORTHWHILE_BYTES = 1024
# zlib's window bits: 15 with its own header (which HTTP calls deflate), 16 more with gzip's.
_WINDOW_BITS = {"deflate": zlib.MAX_WBITS, "gzip": zlib.MAX_WBITS + 16}
_FASTEST = 1
# A piece is made in about ten milliseconds, from no more of the body than is worth copying again.
PIECE_BYTES = 2**22
_READ_BYTES = 2**16


def decompress(body: Payload, encoding: str, limit_bytes: int) -> Iterator[bytes]:
    """What ``body`` holds, in pieces that are made as they are asked for.

    ``encoding`` is that of the header Content-Encoding. Raises UnsupportedEncodingError for one
    that is neither gzip nor deflate, RequestTooLargeError once there are more than ``limit_bytes``,
    BadRequestError for a damaged body.
    """
    window_bits = _WINDOW_BITS.get(encoding)
    if window_bits is None:
        raise UnsupportedEncodingError(
            f"a body's Content-Encoding is {encoding[:40]!r}; expected gzip, deflate or none"
        )
    decompressor = zlib.decompressobj(window_bits)
    left_bytes = limit_bytes
    for start in range(0, len(body), _READ_BYTES):
        compressed: Payload = body[start : start + _READ_BYTES]
        may_go_on = True
        while may_go_on:
            try:
                piece = decompressor.decompress(compressed, PIECE_BYTES)
            except zlib.error as error:
                raise BadRequestError(f"the body is damaged: no {encoding} ({error})") from error
            left_bytes -= len(piece)
            if left_bytes < 0:
                raise RequestTooLargeError(
                    f"the body decompresses to more than {limit_bytes:,} bytes; expected no more"
                )
            yield piece
            compressed = decompressor.unconsumed_tail
            may_go_on = bool(compressed) or len(piece) == PIECE_BYTES
        if decompressor.eof and (decompressor.unused_data or start + _READ_BYTES < len(body)):
            raise BadRequestError(f"the body is damaged: something follows its {encoding}")
    if not decompressor.eof:
        raise BadRequestError(f"the body is damaged: its {encoding} is cut short")


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
