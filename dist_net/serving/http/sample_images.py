"""GET /v1/models/MODEL/samples: images to try a model with, which its run held out."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from dist_net.errors import ModelNotServedError
from dist_net.serving.gateway.gateway import Gateway
from dist_net.serving.http.asking import served_model
from dist_net.serving.http.replies import Json
from dist_net.serving.pool.description import ServedModel

_HEADERS = {"cache-control": "no-store", "x-content-type-options": "nosniff"}


class SampleImages:
    """Answers with what the model loader has sent, from memory."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """The addresses of these answers."""
        return [
            Route("/v1/models/{model}/samples", self.samples),
            Route("/v1/models/{model}/samples/{number}", self.sample),
        ]

    async def samples(self, request: Request) -> Json:
        """The class and the address of each image to try a model with."""
        model = self._model(request)
        path = f"/v1/models/{model.name}/samples"
        listed = [
            {"label": each.label, "path": f"{path}/{number}"}
            for number, each in enumerate(model.samples)
        ]
        return Json(listed)

    async def sample(self, request: Request) -> Response:
        """An image to try a model with."""
        model, number = self._model(request), request.path_params["number"]
        by_number = {str(place): each for place, each in enumerate(model.samples)}
        if number not in by_number:
            raise ModelNotServedError(
                f"{model.name} has no sample {number[:40]!r}; expected one of those that "
                f"/v1/models/{model.name}/samples lists"
            )
        return Response(by_number[number].image, media_type="image/png", headers=_HEADERS)

    def _model(self, request: Request) -> ServedModel:
        return served_model(self._gateway, request.path_params["model"])
