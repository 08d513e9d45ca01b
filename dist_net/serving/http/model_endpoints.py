"""The protocol's endpoints about models: health, metadata, statistics, loading and unloading."""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from dist_net.errors import BadRequestError, PoolUnavailableError
from dist_net.ground.clock import Clock
from dist_net.ground.release import VERSION
from dist_net.nets.tensor_specs import TensorSpec
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.exchange import (
    HttpExchange,
    RequestMemory,
    description_of,
    not_ready,
    served_model,
    version_number,
)
from dist_net.serving.http.json_tensors import json_object
from dist_net.serving.http.open_inference import full_shape
from dist_net.serving.http.replies import HttpReply, Json, result_reply
from dist_net.serving.pool.description import (
    ModelDescription,
    ServedModel,
    summary_of,
    summary_to_json,
)
from dist_net.serving.pool.requests import Status
from dist_net.serving.pool.statistics import NO_VERSION, TIMES, ModelStatistics, Timed
from dist_net.serving.pool.versions import CONFIRMED

_PLATFORM = "dist_net"
_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "statistics",
)
_LISTED = (
    *("name", "version", "versions", "is_ready", "reason", "max_batch_size"),
    *("input_datatype", "input_shape", "takes_images", "has_classes", "classes"),
)
SERVER_METADATA = {"name": _PLATFORM, "version": VERSION, "extensions": _EXTENSIONS}
_KEPT_VERSIONS = 2
_OWN_FILES = ("config", "file:")  # parameters by which Triton's clients send a model's files
_NS_PER_S = 1e9
_MS_PER_S = 1e3


@dataclass(frozen=True)
class Models:
    """The endpoints about models. ``clock`` is the pool's."""

    gateway: Gateway
    memory: RequestMemory
    clock: Clock

    def routes(self) -> list[Route]:
        """Return the routes of the server, of each model and version, and of the repository."""
        routes = [
            Route("/v2", self.server),
            Route("/v2/", self.server),  # as the protocol spells it
            Route("/v2/health/live", self.live),
            Route("/v2/health/ready", self.ready),
            Route("/v2/models/stats", self.all_statistics),
            Route("/v1/models", self.models),
            Route("/v1/models/{model}", self.summary),
        ]
        for model in ("/v2/models/{model}", "/v2/models/{model}/versions/{version}"):
            routes += [
                Route(model, self.model),
                Route(f"{model}/ready", self.model_ready),
                Route(f"{model}/config", self.configuration),
                Route(f"{model}/stats", self.statistics),
            ]
        repository = "/v2/repository/models/{model}"
        return [
            *routes,
            Route("/v2/repository/index", self.index, methods=["POST"]),
            Route(f"{repository}/load", self.load, methods=["POST"]),
            Route(f"{repository}/unload", self.unload, methods=["POST"]),
            Route(f"{repository}/confirm", self.end_rollout, methods=["POST"]),
            Route(f"{repository}/rollback", self.end_rollout, methods=["POST"]),
        ]

    async def server(self, _: Request) -> Json:
        return Json(SERVER_METADATA)

    async def live(self, _: Request) -> Json:
        return Json({"live": True})

    async def ready(self, _: Request) -> Json:
        if not self.gateway.is_ready:
            raise PoolUnavailableError("not every model is ready; see /pool")
        return Json({"ready": True})

    async def models(self, _: Request) -> Json:
        summaries = [
            summary_of(each, self.gateway.max_batch_size) for each in self.gateway.models().values()
        ]
        return Json([{name: getattr(each, name) for name in _LISTED} for each in summaries])

    async def summary(self, request: Request) -> HttpReply:
        """Return a model's state and each version, with all labels, for ``dist_net.Client``."""
        served = served_model(self.gateway, request.path_params["model"])
        return HttpReply(summary_to_json(served, self.gateway.max_batch_size))

    async def model_ready(self, request: Request) -> Json:
        served, _ = self._served(request)
        if not served.is_ready:
            raise not_ready(served)
        return Json({"name": served.name, "ready": True})

    async def model(self, request: Request) -> Json:
        served, _ = self._served(request)
        return Json(model_metadata(self._description(request), served.versions))

    async def configuration(self, request: Request) -> Json:
        return Json(configuration_of(self._description(request), self.gateway.max_batch_size))

    async def statistics(self, request: Request) -> Json:
        served, versions = self._served(request)
        return Json({"model_stats": self._statistics(served.name, versions)})

    async def all_statistics(self, _: Request) -> Json:
        served = self.gateway.models().values()
        found = [each for model in served for each in self._statistics(model.name, model.versions)]
        return Json({"model_stats": found})

    async def index(self, request: Request) -> Json:
        only_ready = (await self._content(request)).get("ready") is True
        return Json(list(_index(self.gateway.models().values(), only_ready)))

    async def load(self, request: Request) -> Json:
        """Read a model again from its source; respond once workers serve it.

        With the parameter ``share`` below 1, that begins a rollout.
        """
        parameters = (await self._content(request)).get("parameters") or {}
        if isinstance(parameters, dict) and any(name.startswith(_OWN_FILES) for name in parameters):
            raise BadRequestError(
                "the server's command line defines the source of a model's files; expected a load "
                "without config and files",
                http_code=501,
            )
        name = served_model(self.gateway, request.path_params["model"]).name
        share = parameters.get("share", 1.0) if isinstance(parameters, dict) else 1.0
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise BadRequestError(f'"share" is {share!r:.40}; expected a number above 0, at most 1')
        result = await self.gateway.reload(name, share)
        if result.status != Status.OK:
            return result_reply(result)
        return Json({"name": name, "version": str(result.version)})

    async def unload(self, request: Request) -> Json:
        await self._content(request)
        name = served_model(self.gateway, request.path_params["model"]).name
        self.gateway.unload(name)
        return Json({"name": name, "version": "0"})

    async def end_rollout(self, request: Request) -> Json:
        """End a rollout as the last word of the path tells."""
        confirms = request.url.path.endswith("confirm")
        await self._content(request)
        name = served_model(self.gateway, request.path_params["model"]).name
        version = self.gateway.end_rollout(name, CONFIRMED if confirms else "rolled back")
        if version == NO_VERSION:
            raise BadRequestError(
                f"no rollout of {name} is under way; expected one that a reload with a share "
                f"began, and that has not ended: see /pool"
            )
        return Json({"name": name, "version": str(version)})

    def _served(self, request: Request) -> tuple[ServedModel, tuple[int, ...]]:
        served = served_model(self.gateway, request.path_params["model"])
        if version_number(request) is None:
            return served, tuple(served.versions)
        return served, (self._description(request).version,)

    def _description(self, request: Request) -> ModelDescription:
        name = request.path_params["model"]
        return description_of(self.gateway, name, version_number(request))

    def _statistics(self, name: str, versions: Iterable[int]) -> list[dict[str, Any]]:
        epoch_of_clock_s = time.time() - self.clock.now()
        counted = self.gateway.statistics(name)
        return [
            statistics_of(name, version, counted.get(version), epoch_of_clock_s)
            for version in versions
        ]

    async def _content(self, request: Request) -> Mapping[str, Any]:
        """Return the JSON object in the body; an empty one for an empty body."""
        exchange = HttpExchange(self.memory, request)
        body = await exchange.body()
        return json_object(body)[0] if body else {}


def model_metadata(model: ModelDescription, versions: Iterable[int]) -> dict[str, Any]:
    """Return a model's inputs and outputs; -1 means any number of rows."""
    return {
        "name": model.name,
        "versions": [str(version) for version in versions],
        "platform": _PLATFORM,
        "inputs": [_tensor(each, model) for each in model.inputs],
        "outputs": [_tensor(each, model) for each in model.outputs],
    }


def _tensor(spec: TensorSpec, model: ModelDescription) -> dict[str, Any]:
    name, datatype, shape = spec
    return {"name": name, "datatype": datatype, "shape": full_shape(model, shape)}


def configuration_of(model: ModelDescription, max_batch_size: int) -> dict[str, Any]:
    """Return a model's configuration; unlike in the metadata, shapes are of one row."""
    batching = {"preferred_batch_size": [max_batch_size]}
    threshold = {"unknown_below": {"string_value": str(model.unknown_below)}}
    return {
        "name": model.name,
        "platform": _PLATFORM,
        "backend": _PLATFORM,
        "version_policy": {"latest": {"num_versions": _KEPT_VERSIONS}},
        "max_batch_size": max_batch_size if model.is_batched else 0,
        "input": [_configured(each) for each in model.inputs],
        "output": [_configured(each) for each in model.outputs],
        **({"dynamic_batching": batching} if model.is_batched else {}),
        **({"parameters": threshold} if model.unknown_below else {}),
    }


def _configured(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "data_type": f"TYPE_{spec.datatype}", "dims": spec.shape}


def _index(models: Iterable[ServedModel], only_ready: bool) -> Iterator[dict[str, str]]:
    """List every served version, and every model without one."""
    for model in models:
        if only_ready and not model.is_ready:
            continue
        state = "READY" if model.is_ready else "UNAVAILABLE"
        for version in model.versions or ("",):
            found = {"name": model.name, "version": str(version)}
            yield found | {"state": state, "reason": model.reason}


def statistics_of(
    name: str, version: int, counted: ModelStatistics | None, epoch_of_clock_s: float
) -> dict[str, Any]:
    """Return an entry of ``model_stats``; ``epoch_of_clock_s`` is the pool's time 0 since 1970."""
    counted = counted or ModelStatistics()
    last_s = counted.last_inference_s
    return {
        "name": name,
        "version": str(version),
        "last_inference": 0 if last_s is None else int((epoch_of_clock_s + last_s) * _MS_PER_S),
        "inference_count": counted.inference_count,
        "execution_count": counted.execution_count,
        "inference_stats": {name: _duration(getattr(counted, name)) for name in TIMES}
        | {"cache_hit": _duration(Timed()), "cache_miss": _duration(Timed())},
        "batch_stats": [
            {"batch_size": rows, "compute_infer": _duration(timed)}
            for rows, timed in sorted(counted.batches.items())
        ],
    }


def _duration(timed: Timed) -> dict[str, int]:
    return {"count": timed.count, "ns": int(timed.seconds * _NS_PER_S)}
