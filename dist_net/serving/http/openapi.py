"""/openapi.json: what the addresses take and return, as OpenAPI 3.1 describes it.

Addresses, methods and parameters are those of the routes, and summaries the first lines of their
docstrings; only the shapes of bodies are written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from inspect import getdoc
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from dist_net.serving.http.replies import Json
from dist_net.serving.pool.description import TYPE_CODES


def openapi_route(routes: Sequence[Route]) -> Route:
    """`/openapi.json`, which describes these routes and itself."""

    async def openapi(_: Request) -> Json:
        """This description."""
        return Json(document)

    route = Route("/openapi.json", openapi)
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "dist_net",
            "version": version("dist-net"),
            "description": "A pool of models: the Open Inference Protocol v2 with its binary "
            "extension, and an address that takes pictures. Errors are objects with the key "
            "`error`.",
        },
        "paths": {each.path: _operation(each) for each in (*routes, route)},
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }
    return route


def _operation(route: Route) -> dict[str, Any]:
    method = "post" if "POST" in (route.methods or ()) else "get"
    ending = route.path.rpartition("/")[2]
    parameters = [_parameter(name, "path", _TEXT) for name in route.param_convertors]
    if ending == "classify":
        parameters.append(_parameter("top", "query", _INTEGER))
    operation: dict[str, Any] = {
        "summary": (getdoc(route.endpoint) or "").partition("\n")[0].rstrip("."),
        "parameters": parameters,
        "responses": {
            "200": {"description": "Done", "content": _RESPONSES.get(ending, _json(_OBJECT))},
            "default": {
                "description": "Why not: 400 bad request, 404 no such model, 413 too large, "
                "501 not offered, 503 not now (see Retry-After), 504 not in time",
                "content": _json(_schema("Error")),
            },
        },
    }
    if method == "post":
        content = _REQUESTS.get(ending, _json(_OBJECT))
        operation["requestBody"] = {"required": ending in _REQUESTS, "content": content}
    return {method: operation}


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _object(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_OBJECT = {"type": "object"}
_TEXT, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_FLAG = {"type": "boolean"}
_PICTURE = {"type": "string", "format": "binary"}
_PREDICTIONS = _array(
    _object("index label probability", index=_INTEGER, label=_TEXT, probability=_NUMBER)
)
_TENSOR = _object(
    "name shape datatype",
    name=_TEXT,
    shape=_array(_INTEGER),
    datatype={"enum": [*TYPE_CODES, "BYTES"]},
    parameters=_OBJECT,
    data={"type": "array"},
)
_SCHEMAS = {
    "Error": _object("error", error=_TEXT, retry_after_s=_NUMBER),
    "InferRequest": _object(
        "inputs",
        id=_TEXT,
        parameters=_OBJECT,
        inputs=_array(_TENSOR),
        outputs=_array(_object("name", name=_TEXT, parameters=_OBJECT)),
    ),
    "InferResponse": _object(
        "model_name model_version outputs",
        model_name=_TEXT,
        model_version=_TEXT,
        id=_TEXT,
        outputs=_array(_TENSOR),
    ),
    "Classified": _object(
        "model version timings",
        model=_TEXT,
        version=_INTEGER,
        unknown_below=_NUMBER,
        predictions=_PREDICTIONS,
        unknown=_FLAG,
        images=_array(
            _object("name", name=_TEXT, predictions=_PREDICTIONS, unknown=_FLAG, error=_TEXT)
        ),
        timings=_object("total_ms", total_ms=_NUMBER, queue_ms=_NUMBER, compute_ms=_NUMBER),
    ),
}
# By the end of a path; everything else takes and returns a JSON object.
_REQUESTS = {
    "infer": _json(_schema("InferRequest")),
    "classify": {
        "image/jpeg": {"schema": _PICTURE},
        "image/png": {"schema": _PICTURE},
        "multipart/form-data": {"schema": _object("image", image=_array(_PICTURE))},
    },
}
_RESPONSES = {
    "infer": _json(_schema("InferResponse")),
    "classify": _json(_schema("Classified")),
    "index": _json({"type": "array"}),
    "samples": _json(_array(_object("label path", label=_TEXT, path=_TEXT))),
    "{number}": {"image/png": {"schema": _PICTURE}},
    "metrics": {"text/plain": {}},
}
