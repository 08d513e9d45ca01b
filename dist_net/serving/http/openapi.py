"""/openapi.json: what the addresses take and give, as OpenAPI 3.1 describes it."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from starlette.requests import Request
from starlette.routing import Route

from dist_net.serving.http.replies import Json

_JSON = "application/json"
_OBJECT = {"type": "object"}


def openapi_route() -> Route:
    """`/openapi.json`."""
    document = openapi_document()

    async def openapi(_: Request) -> Json:
        return Json(document)

    return Route("/openapi.json", openapi)


def openapi_document() -> dict[str, Any]:
    """The description of every address but the page's files."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "dist_net",
            "version": version("dist-net"),
            "description": "A pool of models: the Open Inference Protocol v2 with its binary "
            "extension, and pictures by themselves. Errors are objects with the key `error`.",
        },
        "paths": _paths(),
        "components": {
            "schemas": _SCHEMAS,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _paths() -> dict[str, Any]:
    model = "/v2/models/{model}"
    of_model = {
        "": ("get", "A model's inputs and outputs", None, _OBJECT),
        "/ready": ("get", "Whether a model can be answered for now", None, _OBJECT),
        "/config": ("get", "A model's configuration", None, _OBJECT),
        "/stats": ("get", "What a model was asked and how it went", None, _OBJECT),
        "/infer": ("post", "Ask a model", _schema("InferRequest"), _schema("InferResponse")),
    }
    described = {
        "/v2": ("get", "What server this is", None, _OBJECT),
        "/v2/health/live": ("get", "Whether the server answers", None, _OBJECT),
        "/v2/health/ready": ("get", "Whether every model can be answered for", None, _OBJECT),
        "/v2/models/stats": ("get", "The statistics of every model", None, _OBJECT),
        **{f"{model}{rest}": each for rest, each in of_model.items()},
        **{f"{model}/versions/{{version}}{rest}": each for rest, each in of_model.items()},
        "/v2/repository/index": ("post", "Every model and version", _OBJECT, {"type": "array"}),
        "/v2/repository/models/{model}/load": ("post", "Read it again", _OBJECT, _OBJECT),
        "/v2/repository/models/{model}/unload": ("post", "Serve it no longer", _OBJECT, _OBJECT),
        "/pool": ("get", "The pool now: workers, queue, models", None, _OBJECT),
        "/openapi.json": ("get", "This description", None, _OBJECT),
    }
    paths = {path: _operation(path, *each) for path, each in described.items()}
    for path in ("/v1/models/{model}/classify", "/v1/classify"):
        paths[path] = _operation(
            path, "post", "Say what pictures show", None, _schema("Classified")
        )
        paths[path]["post"]["requestBody"] = _PICTURES
        paths[path]["post"]["parameters"].append(_parameter("top", "query", {"type": "integer"}))
    paths["/metrics"] = _operation("/metrics", "get", "Metrics for Prometheus", None, _OBJECT)
    paths["/metrics"]["get"]["responses"]["200"]["content"] = {"text/plain": {}}
    return paths


def _operation(
    path: str, method: str, summary: str, request: dict[str, Any] | None, response: dict[str, Any]
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "parameters": [
            _parameter(name, "path", {"type": "string"})
            for name in ("model", "version")
            if f"{{{name}}}" in path
        ],
        "responses": {
            "200": {"description": "Done", "content": {_JSON: {"schema": response}}},
            "default": {
                "description": "Why not: 400 cannot be answered, 404 no such model, 413 too "
                "large, 501 not offered, 503 not now (see Retry-After), 504 not in time",
                "content": {_JSON: {"schema": _schema("Error")}},
            },
        },
    }
    if request is not None:
        operation["requestBody"] = {"content": {_JSON: {"schema": request}}}
    return {method: operation}


def _parameter(name: str, place: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, **properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


_TEXT, _NUMBER, _INTEGER = {"type": "string"}, {"type": "number"}, {"type": "integer"}
_PICTURE = {"type": "string", "format": "binary"}
_PICTURES = {
    "required": True,
    "content": {
        "image/jpeg": {"schema": _PICTURE},
        "image/png": {"schema": _PICTURE},
        "multipart/form-data": {"schema": _object("image", image=_array(_PICTURE))},
    },
}
_PREDICTIONS = _array(
    _object("index label probability", index=_INTEGER, label=_TEXT, probability=_NUMBER)
)
_TENSOR = _object(
    "name shape datatype",
    name=_TEXT,
    shape=_array(_INTEGER),
    datatype={"enum": ["FP32", "UINT8", "BYTES"]},
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
        predictions=_PREDICTIONS,
        images=_array(_object("name", name=_TEXT, predictions=_PREDICTIONS, error=_TEXT)),
        timings=_object("total_ms", total_ms=_NUMBER, queue_ms=_NUMBER, compute_ms=_NUMBER),
    ),
}
