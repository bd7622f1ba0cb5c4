"""POST /predict/{model} in the OpenAPI document. FastAPI documents only its own routes."""

from collections.abc import Callable, Mapping
from http.client import responses as phrases
from typing import Any

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder

from service.api.predict import PredictQuery, predict, route
from service.api.schemas import PredictAnswer

_REFERENCE = "#/components/schemas/{model}"
_ERRORS = (400, 404, 408, 413, 415, 422, 429, 500, 503, 504)

_FILE = {"type": "string", "format": "binary"}
_IMAGES = ("image/jpeg", "image/png", "image/webp", "image/bmp", "image/gif", "application/octet-stream")
_BODIES = {
    **{media_type: {"schema": _FILE} for media_type in _IMAGES},
    "multipart/form-data": {
        "schema": {"type": "object", "properties": {"file": {"type": "array", "items": _FILE}}},
    },
    "application/json": {
        "schema": {"type": "object", "required": ["instances"], "properties": {"instances": {"type": "array"}}},
        "examples": {
            "numbers": {"value": {"instances": [[5.1, 3.5, 1.4, 0.2]]}},
            "images": {"value": {"instances": [{"b64": "/9j/4AAQSkZJRg..."}]}},
        },
    },
}


def document_predict(app: FastAPI) -> None:
    """Adds the route to the OpenAPI document, which FastAPI makes at the first request for it."""
    make: Callable[[], dict[str, Any]] = app.openapi

    def openapi() -> dict[str, Any]:
        document = make()
        if route.path not in document["paths"]:
            operation, schemas = jsonable_encoder([_operation(), _schemas()], exclude_none=True)  # as FastAPI does
            document["paths"] = {route.path: {"post": operation}, **document["paths"]}
            components = document["components"]
            components["schemas"] = dict(sorted({**components["schemas"], **schemas}.items()))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend it


def _operation() -> Mapping[str, Any]:
    return {
        "summary": "Predict",
        "description": predict.__doc__,
        "operationId": "predict_predict__model__post",
        "parameters": [
            {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "title": "Model"}},
            *_parameters(),
        ],
        "requestBody": {"required": True, "content": _BODIES},
        "responses": {
            "200": {"description": "Successful Response", "content": _json("PredictAnswer")},
            **{str(status): {"description": phrases[status], "content": _json("ErrorAnswer")} for status in _ERRORS},
        },
    }


def _parameters() -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "schema": schema, "description": schema["description"]}
        for name, schema in PredictQuery.model_json_schema()["properties"].items()
    ]


def _schemas() -> dict[str, Any]:
    schema = PredictAnswer.model_json_schema(ref_template=_REFERENCE, mode="serialization")
    return {**schema.pop("$defs"), PredictAnswer.__name__: schema}


def _json(model: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _REFERENCE.format(model=model)}}}
