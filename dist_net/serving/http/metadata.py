"""The protocol's addresses that only tell: health, metadata, configurations, statistics."""

from __future__ import annotations

import time
from collections.abc import Iterable
from importlib.metadata import version as installed_version
from itertools import chain
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from dist_net.clock import Clock
from dist_net.errors import PoolUnavailableError
from dist_net.serving.gateway.service import ServedModel, Service
from dist_net.serving.http.asking import (
    description_of,
    require_version,
    served_model,
    version_number,
)
from dist_net.serving.http.open_inference.metadata import (
    model_configuration,
    model_metadata,
    model_statistics,
    server_metadata,
)
from dist_net.serving.http.replies import Json
from dist_net.serving.pool.description import ModelDescription


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
