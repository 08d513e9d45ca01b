"""POST /v1/models/MODEL/classify: pictures in, named classes out.

The pictures are the body itself, or the files of a multipart form. A form is taken apart at its
boundaries (RFC 2046, 5.1.1; RFC 7578) by a search that no content makes slow, and none of it is
copied.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.routing import Route

from dist_net.errors import BadRequestError, QuestionError, RequestTooLargeError
from dist_net.pictures.predictions import predictions_of
from dist_net.serving.gateway.service import Service
from dist_net.serving.http.asking import ask, description_of
from dist_net.serving.http.bodies import Bodies, headers_of
from dist_net.serving.http.open_inference.codec import MOST_PICTURES
from dist_net.serving.http.replies import Json, error_content, outcome_reply
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Outcome, Payload, Question, Status

_DEFAULT_TOP = 5
_MS_PER_S = 1e3
# Beside its files a form may have some fields; these are left out of account.
_MOST_PARTS = 2 * MOST_PICTURES
_MOST_HEAD_BYTES = 4096
_SEARCHED_BYTES = 2**20
_BLANK_LINE = b"\r\n\r\n"
_BOUNDARY = re.compile(rb'boundary="?([^";\s]{1,70})', re.IGNORECASE)
_FILE_NAME = re.compile(
    rb'^content-disposition:[^\r\n]*;\s*filename\*?="?([^"\r\n;]*)', re.IGNORECASE | re.MULTILINE
)


class Images:
    """What these addresses answer."""

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service = service
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """Where each is found."""
        return [
            Route("/v1/models/{model}/classify", self.classify, methods=["POST"]),
            Route("/v1/classify", self.classify, methods=["POST"]),
        ]

    async def classify(self, request: Request) -> Json:
        """Says what each picture of a request shows; one that cannot be answered fails alone."""
        began_s = perf_counter()
        headers = headers_of(request.scope)
        with self._bodies.next() as body:
            content = await body.receive(headers, request.receive) or b""
            content_type = headers.get(b"content-type", b"")
            searched_bytes = len(content) if is_form(content_type) else 0
            pictures = await body.off_loop(
                searched_bytes, lambda: pictures_of(content, content_type)
            )
            model = self._model(request.path_params.get("model"))
            top = _top(request.query_params.get("top"))
            # One answer, so one version, also if a newer one comes between the pictures.
            version = model.version if len(pictures) > 1 else None
            questions = [
                Question(model.name, each.content, is_picture=True, version=version)
                for each in pictures
            ]
            outcomes = await ask(self._service, questions, request.receive)
        total_ms = (perf_counter() - began_s) * _MS_PER_S
        return _reply(model, pictures, outcomes, top, total_ms)

    def _model(self, name: str | None) -> ModelDescription:
        """The model that is asked; a path without a name means the only one."""
        if name is None:
            names = list(self._service.models())
            if len(names) != 1:
                raise BadRequestError(
                    f"{len(names)} models are served; expected the path "
                    f"/v1/models/MODEL/classify with one of: {', '.join(names)}"
                )
            name = names[0]
        model = description_of(self._service, name)
        if not model.takes_pictures:
            raise QuestionError(
                f"{name} takes no pictures; expected its inputs at /v2/models/{name}/infer, of "
                f"the shape {[-1, *model.input_shape]}"
            )
        return model


def _top(text: str | None) -> int:
    if text is None:
        return _DEFAULT_TOP
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 6 and int(text)):
        raise BadRequestError(f"top is {text[:40]!r}; expected how many classes, at least 1")
    return int(text)


def _reply(
    model: ModelDescription,
    pictures: Sequence[Picture],
    outcomes: Sequence[Outcome],
    top: int,
    total_ms: float,
) -> Json:
    """One picture's answer or error; of several a list of these, an error if none was answered."""
    said = [_said_of(outcome, top) for outcome in outcomes]
    answered = next((each for each in outcomes if each.status == Status.OK), None)
    several: dict[str, Any] = {}
    if len(pictures) > 1:
        several["images"] = [
            {"name": picture.name} | each for picture, each in zip(pictures, said, strict=True)
        ]
    if answered is None:
        return outcome_reply(outcomes[0], **several)
    content = {"model": model.name, "version": answered.version}
    content |= several or said[0]
    return Json(content | {"timings": _timings(outcomes, total_ms)})


def _said_of(outcome: Outcome, top: int) -> dict[str, Any]:
    if outcome.status != Status.OK:
        return error_content(outcome.reason, outcome.retry_after_s)
    probabilities = np.frombuffer(outcome.payload, "<f4")
    predictions = predictions_of(probabilities, outcome.labels, top)
    return {"predictions": [asdict(each) for each in predictions]}


def _timings(outcomes: Sequence[Outcome], total_ms: float) -> dict[str, Any]:
    """Of the request in all, and of that picture which took longest in each."""
    return {
        "total_ms": total_ms,
        "queue_ms": max(outcome.queue_s for outcome in outcomes) * _MS_PER_S,
        "prepare_ms": max(outcome.prepare_s for outcome in outcomes) * _MS_PER_S,
        "compute_ms": max(outcome.compute_s for outcome in outcomes) * _MS_PER_S,
        "batch_rows": max(outcome.batch_rows for outcome in outcomes),
    }


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
