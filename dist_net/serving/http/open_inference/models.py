"""The protocol's addresses about models: health, metadata, statistics, and loading."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version as installed_version
from itertools import chain
from typing import Any

import orjson
from starlette.requests import Request
from starlette.routing import Route

from dist_net.clock import Clock
from dist_net.errors import (
    BadRequestError,
    PoolUnavailableError,
    RequestTooLargeError,
    UnsupportedRequestError,
)
from dist_net.serving.gateway.service import ServedModel, Service
from dist_net.serving.http.asking import (
    description_of,
    require_version,
    served_model,
    version_number,
)
from dist_net.serving.http.bodies import Bodies, headers_of
from dist_net.serving.http.open_inference.codec import INPUT, MOST_JSON_BYTES, OUTPUT
from dist_net.serving.http.replies import Json, outcome_reply
from dist_net.serving.pool.description import ModelDescription
from dist_net.serving.pool.requests import Outcome, Status
from dist_net.serving.pool.statistics import ModelStatistics, Timed
PLATFORM = "dist_net"
EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
KEPT_VERSIONS = 2
_NS_PER_S = 1e9
_MS_PER_S = 1e3
_OWN_FILES = ("config", "file:")


class Metadata:
    """What these addresses answer. ``clock`` is the one that the pool counts time by."""

    def __init__(self, service: Service, max_batch_size: int, clock: Clock) -> None:
        self._service = service
        self._max_batch_size = max_batch_size
        self._clock = clock
        self._server = server_metadata(installed_version("dist-net"))

    def routes(self) -> list[Route]:
        """Where each is found."""
        routes = [
            Route("/v2", self.server),
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.all_statistics),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/config", self.configuration),
                Route(f"{model}/stats", self.statistics),
            ]
        return routes

    async def server(self, _: Request) -> Json:
        """What server this is."""
        return Json(self._server)

    async def live(self, _: Request) -> Json:
        """Whether the process answers at all."""
        return Json({"live": True})

    async def ready(self, _: Request) -> Json:
        """Whether every model can be answered for now."""
        if not self._service.is_ready:
            raise PoolUnavailableError("not every model can be answered for now; see /pool")
        return Json({"ready": True})

    async def model_ready(self, request: Request) -> Json:
        """Whether one model can be."""
        served, _ = self._asked_for(request)
        if not served.is_ready:
            raise PoolUnavailableError(
                f"{served.name} cannot be answered for now: "
                f"{served.reason or 'no worker has loaded it'}"
            )
        return Json({"name": served.name, "ready": True})

    async def model(self, request: Request) -> Json:
        """A model's inputs and outputs."""
        served, _ = self._asked_for(request)
        return Json(model_metadata(self._description(request), served.versions))

    async def configuration(self, request: Request) -> Json:
        """A model's configuration."""
        return Json(model_configuration(self._description(request), self._max_batch_size))

    async def statistics(self, request: Request) -> Json:
        """What a model was asked and how it went."""
        served, versions = self._asked_for(request)
        return Json({"model_stats": self._statistics(served, versions)})

    async def all_statistics(self, _: Request) -> Json:
        """The same of every model."""
        found = [self._statistics(each, each.versions) for each in self._service.models().values()]
        return Json({"model_stats": list(chain.from_iterable(found))})

    def _statistics(self, served: ServedModel, versions: Iterable[int]) -> list[dict[str, Any]]:
        counted = self._service.statistics(served.name)
        epoch_of_clock_s = time.time() - self._clock.now()
        return list(model_statistics(served.name, versions, counted, epoch_of_clock_s))

    def _description(self, request: Request) -> ModelDescription:
        """What a path names: a version, or the newest."""
        version = request.path_params.get("version")
        number = None if version is None else version_number(version)
        return description_of(self._service, request.path_params["model"], number)

    def _asked_for(self, request: Request) -> tuple[ServedModel, tuple[int, ...]]:
        """The model that a path names, and those of its versions that it means."""
        served = served_model(self._service, request.path_params["model"])
        if "version" not in request.path_params:
            return served, served.versions
        version = version_number(request.path_params["version"])
        require_version(served, version)
        return served, (version,)


class Repository:
    """What these addresses answer."""

    def __init__(self, service: Service, bodies: Bodies) -> None:
        self._service = service
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """Where each is found."""
        model = "/v2/repository/models/{model}"
        return [
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(f"{model}/load", self.load, methods=["POST"]),
            Route(f"{model}/unload", self.unload, methods=["POST"]),
        ]

    async def index(self, request: Request) -> Json:
        """Every version that is served; of ``{"ready": true}`` those that can be asked."""
        asked = await self._content(request)
        models = self._service.models().values()
        return Json(repository_index(models, asked.get("ready") is True))

    async def load(self, request: Request) -> Json:
        """Reads a model again from its source; the answer comes once it was read."""
        parameters = (await self._content(request)).get("parameters")
        if isinstance(parameters, dict) and any(name.startswith(_OWN_FILES) for name in parameters):
            raise UnsupportedRequestError(
                "a model's files come from where the server's command line says; expected a load "
                "without config and files"
            )
        name = served_model(self._service, request.path_params["model"]).name
        return _reply(name, await self._service.reload(name))

    async def unload(self, request: Request) -> Json:
        """Serves a model no longer."""
        await self._content(request)
        name = served_model(self._service, request.path_params["model"]).name
        return _reply(name, self._service.unload(name))

    async def _content(self, request: Request) -> dict[str, Any]:
        """The body, a JSON object or nothing."""
        with self._bodies.next() as body:
            text = await body.receive(headers_of(request.scope), request.receive)
            if not text:
                return {}
            if len(text) > MOST_JSON_BYTES:
                raise RequestTooLargeError(
                    f"{len(text):,} bytes of JSON; expected at most {MOST_JSON_BYTES:,}"
                )
            try:
                content = await body.off_loop(len(text), lambda: orjson.loads(text))
            except orjson.JSONDecodeError as error:
                raise BadRequestError(f"the request is no JSON: {error}") from error
        if not isinstance(content, dict):
            raise BadRequestError("the request is no JSON object; expected one, or no body")
        return content


def _reply(name: str, outcome: Outcome) -> Json:
    if outcome.status != Status.OK:
        return outcome_reply(outcome)
    return Json({"name": name, "version": str(outcome.version)})


def server_metadata(version: str) -> dict[str, Any]:
    """Of a server that is this release of dist_net."""
    return {"name": "dist_net", "version": version, "extensions": EXTENSIONS}


def model_metadata(model: ModelDescription, versions: Iterable[int]) -> dict[str, Any]:
    """A model's inputs and outputs; -1 stands for any number of rows."""
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": PLATFORM,
        "inputs": [
            {"name": INPUT, "datatype": model.input_datatype, "shape": [-1, *model.input_shape]}
        ],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, model.classes]}],
    }


def model_configuration(model: ModelDescription, max_batch_size: int) -> dict[str, Any]:
    """A model's configuration; its shapes are those of one row, unlike the metadata's."""
    return {
        "name": model.name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "version_policy": {"latest": {"num_versions": KEPT_VERSIONS}},
        "max_batch_size": max_batch_size,
        "input": [
            {
                "name": INPUT,
                "data_type": f"TYPE_{model.input_datatype}",
                "dims": model.input_shape,
            }
        ],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [model.classes]}],
        "dynamic_batching": {"preferred_batch_size": [max_batch_size]},
    }


def repository_index(models: Iterable[ServedModel], only_ready: bool) -> list[dict[str, str]]:
    """Every version that is served, and every model of which there is none."""
    found = []
    for model in models:
        state = "READY" if model.is_ready else "UNAVAILABLE"
        if only_ready and not model.is_ready:
            continue
        for version in model.versions or ("",):
            found.append(
                {
                    "name": model.name,
                    "version": str(version),
                    "state": state,
                    "reason": model.reason,
                }
            )
    return found


def model_statistics(
    name: str,
    versions: Iterable[int],
    counted_by_version: Mapping[int, ModelStatistics],
    epoch_of_clock_s: float,
) -> Iterator[dict[str, Any]]:
    """An entry of ``model_stats`` for each of the versions.

    ``epoch_of_clock_s``: when, in seconds since 1970, the pool's clock began to count.
    """
    for version in versions:
        counted = counted_by_version.get(version) or ModelStatistics()
        last_s = counted.last_inference_s
        yield {
            "name": name,
            "version": str(version),
            "last_inference": 0 if last_s is None else int((epoch_of_clock_s + last_s) * _MS_PER_S),
            "inference_count": counted.inference_count,
            "execution_count": counted.execution_count,
            "inference_stats": {
                "success": _duration(counted.success),
                "fail": _duration(counted.fail),
                "queue": _duration(counted.queue),
                "compute_input": _duration(counted.compute_input),
                "compute_infer": _duration(counted.compute_infer),
                "compute_output": _duration(counted.compute_output),
                "cache_hit": _duration(Timed()),
                "cache_miss": _duration(Timed()),
            },
            "batch_stats": [
                {"batch_size": rows, "compute_infer": _duration(timed)}
                for rows, timed in sorted(counted.batches.items())
            ],
        }


def _duration(timed: Timed) -> dict[str, int]:
    return {"count": timed.count, "ns": int(timed.seconds * _NS_PER_S)}
