"""POST /v1/models/MODEL/classify: pictures in, named classes out.

The pictures are the body itself or the files of a multipart form.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from time import perf_counter
from typing import Any
from urllib.parse import unquote_to_bytes

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import Request
from starlette.routing import Route

from dist_net.errors import BadRequestError, QuestionError, RequestTooLargeError
from dist_net.images.labels import is_unknown, predictions_of
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.asking import ask, description_of
from dist_net.serving.http.bodies import Bodies, Body, headers_of
from dist_net.serving.http.open_inference.codec import MOST_PICTURES
from dist_net.serving.http.replies import Json, error_content, outcome_reply
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Outcome, Payload, Question, Status

_DEFAULT_TOP = 5
_MS_PER_S = 1e3
_MOST_PARTS = 2 * MOST_PICTURES  # a form may have some fields besides its files
_MOST_HEADER_BYTES = 1024
# RFC 7578 forbids it in forms and the parser ignores it, but urllib3 1 sends names beyond ASCII so.
_ENCODED_NAME = re.compile(rb";\s*filename\*=([^;\s]*)", re.IGNORECASE)
# A search in a piece holds the interpreter's lock, for a millisecond if its content is hostile.
_PIECE_BYTES = 2**16

# It warns of each damaged form, which the client is told anyway.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


class Classification:
    """Answers what pictures show."""

    def __init__(self, gateway: Gateway, bodies: Bodies) -> None:
        self._gateway = gateway
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """The addresses of these answers."""
        paths = ("/v1/models/{model}/classify", "/v1/classify")
        return [Route(path, self.classify, methods=["POST"]) for path in paths]

    async def classify(self, request: Request) -> Json:
        """Name what each picture shows; a bad picture does not keep others from an answer."""
        began_s = perf_counter()
        headers = headers_of(request.scope)
        content_type = headers.get(b"content-type", b"")
        with Body(self._bodies) as body:
            content = await body.receive(headers, request.receive) or b""
            take_apart = partial(pictures_of, content, content_type)
            # Even a short form may take milliseconds: its headers are parsed in Python.
            pictures = await body.in_thread(take_apart) if is_form(content_type) else take_apart()
            del content, take_apart  # the pictures of a form are copies; the form is not kept
            model = self._model(request.path_params.get("model"))
            top = _top(request.query_params.get("top"))
            # One answer is of one version, even if a newer one is loaded between the pictures.
            version = model.version if len(pictures) > 1 else None
            questions = [
                Question(model.name, each.content, is_picture=True, version=version)
                for each in pictures
            ]
            outcomes = await ask(self._gateway, questions, request.receive)
        total_ms = (perf_counter() - began_s) * _MS_PER_S
        return _reply(model, pictures, outcomes, top, total_ms)

    def _model(self, name: str | None) -> ModelDescription:
        """The model of this name; without a name, the only one."""
        if name is None:
            names = list(self._gateway.models())
            if len(names) != 1:
                raise BadRequestError(
                    f"{len(names)} models are served; expected the path "
                    f"/v1/models/MODEL/classify with one of: {', '.join(names)}"
                )
            name = names[0]
        model = description_of(self._gateway, name)
        if not model.takes_pictures:
            raise QuestionError(
                f"{name} takes no pictures; expected its inputs at /v2/models/{name}/infer, of "
                f"the shape {[-1, *model.input_shape]}"
            )
        if not model.has_classes:
            raise QuestionError(
                f"{name} predicts numbers and has no classes; expected /v2/models/{name}/infer"
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
    """The answer to one picture, or a list of answers; an error if no picture was answered."""
    answers = [_answer(outcome, top) for outcome in outcomes]
    answered = next((each for each in outcomes if each.status == Status.OK), None)
    several: dict[str, Any] = {}
    if len(pictures) > 1:
        several["images"] = [
            {"name": picture.name} | each for picture, each in zip(pictures, answers, strict=True)
        ]
    if answered is None:
        return outcome_reply(outcomes[0], **several)
    content: dict[str, Any] = {"model": model.name, "version": answered.version}
    if answered.unknown_below:
        content["unknown_below"] = answered.unknown_below
    content |= several or answers[0]
    return Json(content | {"timings": _timings(outcomes, total_ms)})


def _answer(outcome: Outcome, top: int) -> dict[str, Any]:
    if outcome.status != Status.OK:
        return error_content(outcome.reason, outcome.retry_after_s)
    probabilities = np.frombuffer(outcome.payload, "<f4")
    predictions = predictions_of(probabilities, outcome.labels, top)
    answer: dict[str, Any] = {"predictions": [asdict(each) for each in predictions]}
    if outcome.unknown_below:
        answer["unknown"] = is_unknown(predictions, outcome.unknown_below)
    return answer


def _timings(outcomes: Sequence[Outcome], total_ms: float) -> dict[str, Any]:
    """The whole request's time, and for each stage that of its slowest picture."""
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
    return content_type.lower().startswith(b"multipart/form-data")


def pictures_of(body: Payload, content_type: bytes) -> list[Picture]:
    """The pictures in a body: the body itself, borrowed, or the files of a form, copied.

    Raises BadRequestError for none or for a damaged form, RequestTooLargeError for more than
    MOST_PICTURES.
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
    """The files of a form, read piece by piece."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise BadRequestError("the multipart form's Content-Type names no boundary; expected one")
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks(), max_header_size=_MOST_HEADER_BYTES)
        for start in range(0, len(body), _PIECE_BYTES):
            piece = bytes(body[start : start + _PIECE_BYTES])
            # The parser handles each of these in Python, even those that are not boundaries.
            _require_few(piece.count(b"\r\n--" + boundary))
            parser.write(piece)
    except FormParserError as error:
        raise BadRequestError(f"the multipart form is damaged: {error}") from error
    if not form.is_complete:
        raise BadRequestError("the multipart form is cut short; expected its boundary and '--'")
    return [Picture(name, memoryview(content)) for name, content in form.files]


def _require_few(parts: int) -> None:
    if parts > _MOST_PARTS:
        raise RequestTooLargeError(
            f"the multipart form has more than {_MOST_PARTS} parts; expected fewer"
        )


class _Form:
    """Collects the files that a parser finds in a form; other fields are ignored."""

    def __init__(self) -> None:
        self.files: list[tuple[str, bytearray]] = []
        self.is_complete = False
        self._parts = 0
        self._header = b""
        self._value = b""
        self._content: bytearray | None = None  # of the file that is being read

    def callbacks(self) -> Any:
        """The methods that the parser calls, by its names for them."""
        return {name: getattr(self, name) for name in vars(_Form) if name.startswith("on_")}

    def on_part_begin(self) -> None:
        self._content = None
        self._parts += 1
        _require_few(self._parts)

    def on_header_begin(self) -> None:
        self._header = self._value = b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def on_header_end(self) -> None:
        if self._header.lower() != b"content-disposition":
            return
        name = parse_options_header(self._value)[1].get(b"filename")
        encoded = _ENCODED_NAME.search(self._value)
        if name is None and encoded is not None:
            name = unquote_to_bytes(encoded[1].rpartition(b"'")[2])
        if name is not None:
            self._content = bytearray()
            self.files.append((name.decode(errors="replace"), self._content))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._content is not None:
            self._content += memoryview(data)[start:end]

    def on_end(self) -> None:
        self.is_complete = True
