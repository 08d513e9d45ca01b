"""Compressed bodies, in both directions."""

import gzip
import zlib

import numpy as np
import pytest

from dist_net.errors import BadRequestError, RequestTooLargeError, UnsupportedEncodingError
from dist_net.serving.http.bodies import PIECE_BYTES, accepted_encoding, compress, decompress

CONTENT = b"twelve bytes" * 100


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_what_was_compressed_is_decompressed(encoding: str) -> None:
    body = compress(CONTENT, encoding)
    assert len(body) < len(CONTENT)
    assert b"".join(decompress(body, encoding, len(CONTENT))) == CONTENT
    assert (gzip if encoding == "gzip" else zlib).decompress(body) == CONTENT


@pytest.mark.parametrize("size", [PIECE_BYTES - 1, PIECE_BYTES, 2 * PIECE_BYTES + 7])
@pytest.mark.parametrize("is_compressible", [True, False])
def test_a_large_body_is_decompressed_piece_by_piece(size: int, is_compressible: bool) -> None:
    content = bytes(size) if is_compressible else np.random.default_rng(1).bytes(size)
    pieces = list(decompress(compress(content, "gzip"), "gzip", size))
    assert b"".join(pieces) == content
    assert max(map(len, pieces)) <= PIECE_BYTES


def test_no_more_is_decompressed_than_is_asked_for() -> None:
    pieces = decompress(compress(bytes(4 * PIECE_BYTES), "gzip"), "gzip", 2 * PIECE_BYTES)
    assert [len(next(pieces)) for _ in range(2)] == [PIECE_BYTES, PIECE_BYTES]
    with pytest.raises(RequestTooLargeError):
        next(pieces)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_must_not_grow_beyond_the_limit(encoding: str) -> None:
    with pytest.raises(RequestTooLargeError):
        list(decompress(compress(CONTENT, encoding), encoding, len(CONTENT) - 1))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"none",
        gzip.compress(CONTENT)[:-9],
        gzip.compress(CONTENT) + b"x",
        gzip.compress(CONTENT) + bytes(2**17),
    ],
    ids=["empty", "none", "cut", "longer", "much longer"],
)
def test_a_damaged_body_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequestError):
        list(decompress(body, "gzip", 10**6))


def test_an_unknown_compression_is_refused() -> None:
    with pytest.raises(UnsupportedEncodingError):
        list(decompress(CONTENT, "br", 10**6))


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", "gzip"),
        ("deflate, gzip", "deflate"),
        ("br, GZIP;q=0.5", "gzip"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip; q=0.000", None),
        ("identity", None),
        ("", None),
    ],
)
def test_the_client_says_what_it_takes(header: str, expected: str | None) -> None:
    assert accepted_encoding(header) == expected
