"""Pictures in the body of a request: the body itself, or the files of a multipart form; pure.

A form is taken apart by one split (RFC 2046, 5.1.1; RFC 7578), so that no content makes it slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from dist_net.errors import BadRequestError, RequestTooLargeError
from dist_net.serving.open_inference.request import MOST_PICTURES
from dist_net.serving.requests import Payload

# Beside its files a form may have some fields; these are left out of account.
_MOST_PARTS = 2 * MOST_PICTURES
_MOST_HEAD_BYTES = 4096
_BOUNDARY = re.compile(rb'boundary="?([^";\s]{1,70})', re.IGNORECASE)
_FILE_NAME = re.compile(
    rb'^content-disposition:[^\r\n]*;\s*filename\*?="?([^"\r\n;]*)', re.IGNORECASE | re.MULTILINE
)


@dataclass(frozen=True)
class Picture:
    """An encoded picture; ``name`` is that of its file, "" for a body."""

    name: str
    content: Payload


def pictures_of(body: Payload, content_type: bytes) -> list[Picture]:
    """Every picture that a body of this type brings; at most MOST_PICTURES.

    Raises BadRequestError for none, or for a damaged form; RequestTooLargeError for too many.
    """
    if content_type.lower().startswith(b"multipart/form-data"):
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
    _, *parts = (b"\r\n" + bytes(body)).split(b"\r\n--" + boundary[1], _MOST_PARTS + 1)
    found: list[Picture] = []
    for part in parts:
        if part.startswith(b"--"):
            return found
        head, blank_line, content = part.partition(b"\r\n\r\n")
        if not blank_line or len(head) > _MOST_HEAD_BYTES:
            raise BadRequestError(
                f"a part of the multipart form has no headers; expected some, of "
                f"{_MOST_HEAD_BYTES:,} bytes at most, and an empty line"
            )
        if (name := _FILE_NAME.search(head)) is not None:
            found.append(Picture(name[1].decode(errors="replace"), content))
    raise BadRequestError(
        f"the multipart form does not end; expected its boundary and '--', after at most "
        f"{_MOST_PARTS} parts"
    )
