"""POST /v1/models/MODEL/classify: classify the image in the body, or the images of a form."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from time import perf_counter
from typing import Any, cast

import numpy as np
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.requests import Request
from starlette.routing import Route

from dist_net.errors import BadRequestError, RequestTooLargeError
from dist_net.images.labels import is_unknown, likeliest, predictions_of
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import HttpExchange, RequestMemory, description_of
from dist_net.serving.http.json_tensors import Sliced, sliced_json
from dist_net.serving.http.open_inference import (
    CLASS_BYTES,
    MAX_IMAGES,
    SLICE_CLASSES,
    require_short_json,
)
from dist_net.serving.http.replies import Json, error_content, result_reply
from dist_net.serving.pool.description import EncodedImage, ModelDescription
from dist_net.serving.pool.requests import InferenceRequest, Payload, Result, Status

_DEFAULT_TOP = 5
_MS_PER_S = 1e3
_MAX_PARTS = 2 * MAX_IMAGES  # a form may have some fields besides its files
_PIECE_BYTES = 2**12  # a search in it takes up to 0.3 ms

# It warns of each damaged form, which the response reports anyway.
logging.getLogger("python_multipart").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Classification:
    gateway: Gateway
    memory: RequestMemory

    def routes(self) -> list[Route]:
        paths = ("/v1/models/{model}/classify", "/v1/classify")
        return [Route(path, self.classify, methods=["POST"]) for path in paths]

    async def classify(self, request: Request) -> Json:
        """Classify each image; an unreadable image does not affect the others."""
        began_s = perf_counter()
        exchange = HttpExchange(self.memory, request)
        self._model(request.path_params.get("model"))
        body = await exchange.body()
        content_type = exchange.headers.get(b"content-type", b"")
        if content_type.lower().startswith(b"multipart/form-data"):
            images = await exchange.in_slices(form_images(body, content_type))
            del body  # the images of a form are copies; release the form
        else:
            images = [EncodedImage("", body)] if body else []
            _require_images(images)
        model = self._model(request.path_params.get("model"))  # another may be loaded by now
        top = _top(request.query_params.get("top"))
        require_short_json(len(images) * min(top, model.classes) * CLASS_BYTES)
        # All images of a request must be answered by one version.
        version = model.version if len(images) > 1 else None
        requests = [
            InferenceRequest(model.name, each.content, is_image=True, version=version)
            for each in images
        ]
        results = await exchange.infer(self.gateway, model, requests)
        total_ms = (perf_counter() - began_s) * _MS_PER_S
        return await exchange.in_slices(_reply(model, images, results, top, total_ms))

    def _model(self, name: str | None) -> ModelDescription:
        """Return the model of this name; without a name, the only one."""
        if name is None:
            names = list(self.gateway.models())
            if len(names) != 1:
                raise BadRequestError(
                    f"{len(names)} models are served; expected the path "
                    f"/v1/models/MODEL/classify with one of: {', '.join(names)}"
                )
            name = names[0]
        model = description_of(self.gateway, name)
        if not (model.takes_images and model.has_classes):
            reason = "has no classes" if model.takes_images else "takes no images"
            raise BadRequestError(
                f"{name} {reason}; send its inputs, of shape {[-1, *model.input_shape]}, to "
                f"/v2/models/{name}/infer"
            )
        return model


def _top(text: str | None) -> int:
    if text is None:
        return _DEFAULT_TOP
    if not (text.isascii() and text.isdigit() and 0 < len(text) < 6 and int(text)):
        raise BadRequestError(f"top is {text[:40]!r}; expected a number of classes, at least 1")
    return int(text)


def _reply(
    model: ModelDescription,
    images: Sequence[EncodedImage],
    results: Sequence[Result],
    top: int,
    total_ms: float,
) -> Sliced[Json]:
    """Return the classes of one image or of several, or an error if all images failed."""
    answers = []
    for result in results:
        answers.append((yield from _answer(result, top)))
    answered = next((each for each in results if each.status == Status.OK), None)
    several: dict[str, Any] = {}
    if len(images) > 1:
        several["images"] = [
            {"name": image.name} | each for image, each in zip(images, answers, strict=True)
        ]
    if answered is None:
        return result_reply(results[0], **several)
    content: dict[str, Any] = {"model": model.name, "version": answered.version}
    if answered.unknown_below:
        content["unknown_below"] = answered.unknown_below
    content |= several or answers[0]
    timings = {  # of the slowest image at each stage
        "total_ms": total_ms,
        "queue_ms": max(result.queue_s for result in results) * _MS_PER_S,
        "prepare_ms": max(result.prepare_s for result in results) * _MS_PER_S,
        "compute_ms": max(result.compute_s for result in results) * _MS_PER_S,
        "batch_rows": max(result.batch_rows for result in results),
    }
    return Json(content | {"timings": timings})


def _answer(result: Result, top: int) -> Sliced[dict[str, Any]]:
    if result.status != Status.OK:
        return error_content(result.reason, result.retry_after_s)
    probabilities = np.frombuffer(result.payload, "<f4")
    best = likeliest(probabilities, top)
    slices = (best[start : start + SLICE_CLASSES] for start in range(0, best.size, SLICE_CLASSES))
    of = partial(predictions_of, probabilities, result.labels)  # orjson writes objects of them
    answer: dict[str, Any] = {"predictions": (yield from sliced_json(map(of, slices)))}
    if result.unknown_below:
        answer["unknown"] = is_unknown(of(best[:1]), result.unknown_below)
    return answer


def form_images(body: Payload, content_type: bytes) -> Sliced[list[EncodedImage]]:
    """Return copies of a form's files. Raise BadRequestError, RequestTooLargeError for many."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise BadRequestError("the multipart form's Content-Type lacks its boundary; expected one")
    found: list[File | Field] = []
    ends: list[bool] = []

    def take(part: File | Field) -> None:
        found.append(part)
        _require_few(len(found))

    try:
        parser = FormParser(
            *("multipart/form-data", take, take, lambda: ends.append(True), boundary),
            config={"MAX_MEMORY_FILE_SIZE": math.inf},
        )
        for start in range(0, len(body), _PIECE_BYTES):
            piece = bytes(body[start : start + _PIECE_BYTES])
            # The parser handles each match in Python, even if it is not a boundary.
            _require_few(piece.count(b"\r\n--" + boundary))
            parser.write(piece)
            yield
    except FormParserError as error:
        raise BadRequestError(f"the multipart form is damaged: {error}") from error
    if not ends:
        raise BadRequestError("the multipart form is cut short; expected its boundary and '--'")
    files = [each for each in found if isinstance(each, File)]
    _require_images(files)
    return [
        EncodedImage(
            (each.file_name or b"").decode(errors="replace"),
            cast(BytesIO, each.file_object).getbuffer(),
        )
        for each in files
    ]


def _require_images(found: Sequence[object]) -> None:
    if not found:
        raise BadRequestError(
            "the request contains no image; expected a JPEG, PNG or HEIC file as its body, "
            "or a multipart form with such files"
        )
    if len(found) > MAX_IMAGES:
        raise RequestTooLargeError(
            f"{len(found):,} images in one request; expected at most {MAX_IMAGES}"
        )


def _require_few(parts: int) -> None:
    if parts > _MAX_PARTS:
        raise RequestTooLargeError(
            f"the multipart form has more than {_MAX_PARTS} parts; expected fewer"
        )
