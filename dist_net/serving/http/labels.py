"""Labels of a served classifier's images: set, list and withdraw; the teacher learns from them."""

import asyncio
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from dist_net.data.collection import Collection
from dist_net.data.image_split import MIN_NEW_IMAGES
from dist_net.errors import BadRequestError, ModelNotServedError, QuotaExceededError
from dist_net.nets.run_directory import REPORT, RunDirectory
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import HttpExchange, RequestMemory, description_of
from dist_net.serving.http.json_tensors import json_object
from dist_net.serving.http.replies import HttpReply, Json, result_reply
from dist_net.serving.http.settings import TEACHER
from dist_net.serving.pool.requests import InferenceRequest, Status
from dist_net.wire.event_rates import EventRates

T = TypeVar("T")
LABELS_PER_MINUTE, LABELS_AT_ONCE = 120, 120
"""Of a teacher's token: a person labels 40 images per minute. Operators have no limit."""
_SHOWN = 100
_QUEUED = 50
_REPORT_HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@dataclass(frozen=True)
class Labels:
    """``collections``: the directory of each model that is taught."""

    gateway: Gateway
    memory: RequestMemory
    collections: Mapping[str, Path]
    rates: EventRates = field(default_factory=EventRates)

    def routes(self) -> list[Route]:
        path = "/v1/models/{model}/labels"
        return [
            Route(path, self.set, methods=["POST"]),
            Route(path, self.list, methods=["GET"]),
            Route(path, self.withdraw, methods=["DELETE"]),
            Route("/v1/models/{model}/report", self.report),
            Route("/v1/models/{model}/queue", self.queue),
            Route("/report/{model}", self.page),
        ]

    async def set(self, request: Request) -> HttpReply:
        """Set the label of an image, or of an earlier one by its digest; see ``openapi.json``.

        The label is on the disk before the answer is sent. An image that the pool cannot classify
        is not stored.
        """
        exchange = HttpExchange(self.memory, request)
        model = description_of(self.gateway, request.path_params["model"])
        self._directory(model.name)
        self._count(request)
        body = await exchange.body()
        given: Mapping[str, Any] = request.query_params
        if exchange.headers.get(b"content-type", b"").startswith(b"application/json"):
            given = json_object(body)[0]
        elif body:
            image = InferenceRequest(model.name, body, is_image=True, is_private=True)
            (result,) = await exchange.infer(self.gateway, model, [image])
            if result.status != Status.OK:
                return result_reply(result)
        label, digest, is_new = (given.get(name) for name in ("label", "image", "new"))
        if not (isinstance(label, str | None) and isinstance(digest, str | None)):
            raise BadRequestError(
                f"label {label!r:.80}, image {digest!r:.80}: expected texts, or null for an image "
                f"of none of the classes"
            )
        if not (body or digest):
            raise BadRequestError("the request has no image; expected it as the body, or a digest")

        def stored(collection: Collection) -> dict[str, Any]:
            if digest and not (collection.knows(digest) or digest in self._reported(model.name)):
                raise ModelNotServedError(
                    f"no image {digest[:80]!r}; expected the SHA-256 of an image that has a label, "
                    f"is queued or is in the report, or the image itself"
                )
            teacher = request.scope["state"]["credential"].name
            image = digest or bytes(body)
            found = collection.set_label(
                image, label or None, teacher, model.labels, is_new=bool(is_new)
            )
            missing = 0
            if found.label is not None and found.label not in model.labels:
                count = [*collection.current_labels().values()].count(found.label)
                missing = max(0, MIN_NEW_IMAGES - count)
            return {**found._asdict(), "missing": missing}

        return Json(await self._with(model.name, stored))

    async def list(self, request: Request) -> Json:
        """Return the newest labels, the newest first."""
        labels = await self._with(request.path_params["model"], Collection.labels)
        return Json([each._asdict() for each in labels[: -_SHOWN - 1 : -1]])

    async def withdraw(self, request: Request) -> Json:
        """Withdraw a label by ``number``, or all labels of a ``teacher``."""
        number, teacher = (request.query_params.get(name) for name in ("number", "teacher"))
        if (number is None) is (teacher is None) or not (number is None or number.isdecimal()):
            raise BadRequestError(
                f"number {number!r:.80}, teacher {teacher!r:.80}: expected one of the two"
            )
        self._count(request)
        numbers = [] if number is None else [int(number[:18])]
        name = request.path_params["model"]
        return Json(await self._with(name, lambda each: each.withdraw(numbers, teacher)))

    async def queue(self, request: Request) -> Json:
        """Return the images to label next, without those that were labelled meanwhile."""
        waiting = await self._with(request.path_params["model"], Collection.queued)
        return Json(waiting[:_QUEUED])

    async def page(self, request: Request) -> Response:
        """Redirect to the page that shows a report, and corrects its labels."""
        model = quote(request.path_params["model"], safe="")
        return RedirectResponse(f"../report.html?model={model}")

    async def report(self, request: Request) -> Response:
        """Return the page of the newest figures, which its teacher writes after each model."""
        page = self._directory(request.path_params["model"]).with_name(REPORT)
        try:
            content, written_s = await asyncio.to_thread(_read, page)
        except OSError as error:
            raise ModelNotServedError(f"no report yet: {error.strerror}; try again") from error
        headers = _REPORT_HEADERS | {"last-modified": formatdate(written_s, usegmt=True)}
        return Response(content, media_type="text/html", headers=headers)

    def _reported(self, model: str) -> frozenset[str]:
        """Return the digests of the images that the report shows."""
        report = RunDirectory(self._directory(model).parent).read_report()
        shown = (*report.get("mistakes", ()), *report.get("doubtful", ()))
        return frozenset(each["digest"] for each in shown if "digest" in each)

    def _count(self, request: Request) -> None:
        """Count a label or a withdrawal; raise QuotaExceededError beyond a teacher's rate."""
        credential = request.scope["state"]["credential"]
        if credential.role != TEACHER:
            return
        now, rate = time.monotonic(), LABELS_PER_MINUTE / 60
        if wait_s := self.rates.wait_s(credential.name, rate, LABELS_AT_ONCE, now):
            raise QuotaExceededError(
                f"{credential.name} exceeds {LABELS_PER_MINUTE} labels per minute, of which "
                f"{LABELS_AT_ONCE} at once; set fewer",
                wait_s,
            )

    async def _with(self, model: str, work: Callable[[Collection], T]) -> T:
        """Return the result of ``work`` in a thread, since it waits for the disk."""
        directory = self._directory(model)

        def opened() -> T:
            with Collection(directory) as collection:
                return work(collection)

        return await asyncio.to_thread(opened)

    def _directory(self, model: str) -> Path:
        if model not in self.collections:
            raise ModelNotServedError(
                f"{model[:80]!r} is not taught; expected a run on a folder of images, served with "
                f"dist-net serve --teach"
            )
        return self.collections[model]


def _read(page: Path) -> tuple[bytes, float]:
    with page.open("rb") as file:
        return file.read(), os.fstat(file.fileno()).st_mtime
