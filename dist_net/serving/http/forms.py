"""Pictures in the body of a request: the body itself, or the files of a multipart form; pure.

A form is taken apart at its boundaries (RFC 2046, 5.1.1; RFC 7578) by a search that no content
makes slow, and none of it is copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from dist_net.errors import BadRequestError, RequestTooLargeError
from dist_net.serving.http.open_inference.request import MOST_PICTURES
from dist_net.serving.pool.requests import Payload

# Beside its files a form may have some fields; these are left out of account.
_MOST_PARTS = 2 * MOST_PICTURES
_MOST_HEAD_BYTES = 4096
_SEARCHED_BYTES = 2**20
_BLANK_LINE = b"\r\n\r\n"
_BOUNDARY = re.compile(rb'boundary="?([^";\s]{1,70})', re.IGNORECASE)
_FILE_NAME = re.compile(
    rb'^content-disposition:[^\r\n]*;\s*filename\*?="?([^"\r\n;]*)', re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Picture:
    """An encoded picture; ``name`` is that of its file, "" for a body."""

    name: str
    content: Payload


def is_form(content_type: bytes) -> bool:
    """Whether a body of this type is a multipart form."""
    return content_type.lower().startswith(b"multipart/form-data")


def pictures_of(body: Payload, content_type: bytes) -> list[Picture]:
    """Every picture that a body of this type brings, borrowed; at most MOST_PICTURES.

    Raises BadRequestError for none, or for a damaged form; RequestTooLargeError for too many.
    """
    if is_form(content_type):
        found = _files(body, content_type)
    else:
        found = [Picture("", body)] if body else []
    if not found:
        raise BadRequestError(
            "the request holds no picture; expected a JPEG or PNG file as its body, or a "
            "multipart form with such files"
        )
    if len(found) > MOST_PICTURES:
        raise RequestTooLargeError(
            f"{len(found):,} pictures in one request; expected at most {MOST_PICTURES}"
        )
    return found


def _files(body: Payload, content_type: bytes) -> list[Picture]:
    """The parts of a form that have a file name."""
    boundary = _BOUNDARY.search(content_type)
    if boundary is None:
        raise BadRequestError("the multipart form's Content-Type names no boundary; expected one")
    found: list[Picture] = []
    for part in islice(_parts(memoryview(body), b"--" + boundary[1]), _MOST_PARTS + 1):
        begin = bytes(part[:_MOST_HEAD_BYTES])
        if begin.startswith(b"--"):
            return found
        head, blank_line, _ = begin.partition(_BLANK_LINE)
        if not blank_line:
            raise BadRequestError(
                f"a part of the multipart form has no headers; expected some, of "
                f"{_MOST_HEAD_BYTES:,} bytes at most, and an empty line"
            )
        if (name := _FILE_NAME.search(head)) is not None:
            content = part[len(head) + len(_BLANK_LINE) :]
            found.append(Picture(name[1].decode(errors="replace"), content))
    raise BadRequestError(
        f"the multipart form does not end; expected its boundary and '--', after at most "
        f"{_MOST_PARTS} parts"
    )


def _parts(body: memoryview, boundary: bytes) -> Iterator[memoryview]:
    """What follows each boundary, up to the next one; borrowed."""
    delimiter = b"\r\n" + boundary
    start = 0 if bytes(body[: len(boundary)]) == boundary else _end(body, delimiter, 0) + 2
    while start < len(body):
        start += len(boundary)
        end = _end(body, delimiter, start)
        yield body[start:end]
        start = end + 2


def _end(body: memoryview, delimiter: bytes, start: int) -> int:
    """Where the next delimiter begins, or the body ends."""
    pattern = re.compile(re.escape(delimiter))
    # A search holds the interpreter's lock: in stretches, so that other threads have it meanwhile.
    for begin in range(start, len(body), _SEARCHED_BYTES):
        found = pattern.search(body, begin, begin + _SEARCHED_BYTES + len(delimiter) - 1)
        if found is not None:
            return found.start()
    return len(body)
