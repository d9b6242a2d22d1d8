"""OpenAPI 3.1 documents: of the gateway itself, and of a listing, made from its schema. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from kpaas_lab import __version__
from kpaas_lab.market.models import ListingVersion

Document = dict[str, Any]

_ITEMS: Mapping[str, Document] = {
    "BOOL": {"type": "boolean"},
    "BYTES": {"type": "string"},
    **{f"UINT{bits}": {"type": "integer", "minimum": 0} for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": {"type": "integer"} for bits in (8, 16, 32, 64)},
    **{name: {"type": "number"} for name in ("FP16", "FP32", "FP64", "BF16")},
}
_ERROR: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {"error": {"type": "string"}},
}
_PROBLEM: Document = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["code", "message", "hint"],
            "properties": {name: {"type": "string"} for name in ("code", "message", "hint")},
        }
    },
}
_MODEL: Document = {
    "type": "object",
    "required": ["name"],
    "properties": {"name": {"type": "string"}, "inputs": {"type": "array"}, "outputs": {"type": "array"}},
}
_SECURITY: Document = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key of a subscription."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same key."},
}
_HEADERS: Document = {
    "X-Trace-Id": {"schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"}, "description": "W3C trace id."},
    "X-KPaaS-Overhead-Us": {"schema": {"type": "integer"}, "description": "The gateway's own time, microseconds."},
}
_RETRY: Document = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
_FAILURES: Mapping[str, str] = {
    "400": "The request isn't one the model can answer.",
    "401": "No key, or one that isn't known, was revoked or has expired.",
    "403": "The key is of another listing, or the subscription was cancelled.",
    "404": "No such path, or the listing was withdrawn.",
    "405": "The path doesn't answer this method.",
    "413": "The request is too large.",
    "422": "The request isn't one the model can answer.",
    "429": "The plan's limit is reached.",
    "431": "The request's headers are too large.",
    "500": "The model failed.",
    "502": "The endpoint broke off, or its answer isn't valid.",
    "503": "The endpoint doesn't run, or too many calls are in flight.",
    "504": "The endpoint didn't answer in time.",
}


def listing_document(publisher: str, name: str, version: ListingVersion, server: str) -> Document:
    """A listing's document.

    Args:
        publisher: its publisher's name.
        name: its own.
        version: the one that is called now.
        server: the gateway's address, without a trailing slash.

    Example:
        >>> tensor = {"name": "x", "datatype": "FP32", "shape": [-1, 2]}
        >>> version = ListingVersion(number=1, title="Digits", description="", model="digits", example={},
        ...     schema={"inputs": [tensor], "outputs": [tensor]})
        >>> sorted(listing_document("ann", "digits", version, "http://lab/services/api")["paths"])[-1]
        '/v2/models/digits/ready'
    """
    return {
        "openapi": "3.1.0",
        "info": {"title": version.title, "description": version.description, "version": str(version.number)},
        "servers": [{"url": f"{server}/{quote(publisher)}/{quote(name)}"}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": _listing_paths(version),
        "components": {
            "securitySchemes": _SECURITY,
            "schemas": {
                "Error": _ERROR,
                "Model": _MODEL,
                "InferRequest": _message("inputs", version.schema.get("inputs", ()), asked=True),
                "InferResponse": _message("outputs", version.schema.get("outputs", ()), asked=False),
            },
        },
    }


def _listing_paths(version: ListingVersion) -> Document:
    request: Document = {"schema": {"$ref": "#/components/schemas/InferRequest"}}
    if version.example:
        request["example"] = version.example
    model = f"/v2/models/{version.model}"
    infer = _operation("infer", "Call the model.", {"$ref": "#/components/schemas/InferResponse"})
    infer["requestBody"] = {"required": True, "content": {"application/json": request}}
    return {
        "/v2": {"get": _operation("metadata", "The server's name, version and extensions.", {"type": "object"})},
        "/v2/health/live": {"get": _operation("live", "Whether the endpoint runs.", {"type": "object"})},
        "/v2/health/ready": {"get": _operation("ready", "Whether it can answer.", {"type": "object"})},
        model: {"get": _operation("model", "The model's inputs and outputs.", {"$ref": "#/components/schemas/Model"})},
        f"{model}/ready": {"get": _operation("model_ready", "Whether it is loaded.", {"type": "object"})},
        f"{model}/infer": {"post": infer},
    }


def gateway_document(server: str) -> Document:
    """The gateway's own document.

    Example:
        >>> sorted(gateway_document("http://lab/services/api")["paths"])[:2]
        ['/healthz', '/metrics']
    """
    names = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
        for name in ("publisher", "listing")
    ]
    model = {"name": "model", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    reads: Document = {
        "/v2": ("server_metadata", "The server's name, version and extensions."),
        "/v2/health/live": ("live", "Whether the endpoint runs."),
        "/v2/health/ready": ("ready", "Whether it can answer."),
        "/v2/models/{model}": ("model_metadata", "The model's inputs and outputs."),
        "/v2/models/{model}/ready": ("model_ready", "Whether it is loaded."),
    }
    paths: Document = {}
    for path, (name, summary) in reads.items():
        more = [model] if "{model}" in path else []
        paths[f"/{{publisher}}/{{listing}}{path}"] = {
            "parameters": [*names, *more],
            "get": _operation(name, summary, {"type": "object"}),
        }
    paths["/{publisher}/{listing}/v2/models/{model}/infer"] = {
        "parameters": [*names, model],
        "post": _operation("infer", "Call the model.", {"type": "object"})
        | {"requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}}},
    }
    paths["/{publisher}/{listing}/openapi.json"] = {
        "parameters": names,
        "get": _open("listing_document", "The listing's OpenAPI document.", "application/json", ("404", "503")),
    }
    paths["/openapi.json"] = {"get": _open("document", "This document.", "application/json")}
    paths["/healthz"] = {"get": _open("health", "How the gateway is.", "application/json")}
    paths["/metrics"] = {"get": _open("metrics", "Prometheus metrics.", "text/plain")}
    return {
        "openapi": "3.1.0",
        "info": {"title": "K-PaaS Lab API gateway", "version": __version__},
        "servers": [{"url": server}],
        "security": [{"bearer": []}, {"header": []}],
        "paths": paths,
        "components": {"securitySchemes": _SECURITY, "schemas": {"Error": _ERROR, "Problem": _PROBLEM}},
    }


def _operation(name: str, summary: str, answer: Document) -> Document:
    failure = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    answers: Document = {
        "200": {"description": "The answer.", "headers": _HEADERS, "content": {"application/json": {"schema": answer}}}
    }
    for status, description in _FAILURES.items():
        headers = _HEADERS | _RETRY if status in {"429", "503"} else _HEADERS
        answers[status] = {"description": description, "headers": headers, "content": failure}
    return {"operationId": name, "summary": summary, "responses": answers}


def _open(name: str, summary: str, content: str, failures: Sequence[str] = ()) -> Document:
    """An operation that needs no key."""
    schema = {"type": "string"} if content == "text/plain" else {"type": "object"}
    problem = {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    answers: Document = {"200": {"description": summary, "content": {content: {"schema": schema}}}}
    for status in failures:
        answers[status] = {"description": _FAILURES[status], "content": problem}
    return {"operationId": name, "summary": summary, "security": [], "responses": answers}


def _message(part: str, tensors: Sequence[Mapping[str, Any]], *, asked: bool) -> Document:
    """`{"inputs": [...]}` or `{"outputs": [...]}`.

    Args:
        part: "inputs" or "outputs".
        tensors: name, datatype and shape of each.
        asked: whether a caller has to send just these; what an endpoint answers is described more loosely.
    """
    shapes = [_shape(tensor) if asked else {"type": "array", "items": {"type": "integer"}} for tensor in tensors]
    items = [_tensor(tensor, shape) for tensor, shape in zip(tensors, shapes, strict=True)]
    return {
        "type": "object",
        "required": [part],
        "properties": {
            "id": {"type": "string"},
            part: {
                "type": "array",
                **({"minItems": len(tensors), "maxItems": len(tensors)} if asked else {}),
                **({"items": {"oneOf": items}} if items else {}),
            },
        },
    }


def _tensor(tensor: Mapping[str, Any], shape: Document) -> Document:
    datatype = str(tensor.get("datatype", "BYTES"))
    values = {"anyOf": [dict(_ITEMS.get(datatype, {})), {"type": "array"}]}
    return {
        "type": "object",
        "required": ["name", "datatype", "shape", "data"],
        "properties": {
            "name": {"const": tensor.get("name", "")},
            "datatype": {"const": datatype},
            "shape": shape,
            "data": {"type": "array", "items": values, "description": "Row by row, flat or nested."},
        },
    }


def _shape(tensor: Mapping[str, Any]) -> Document:
    """A size below 0 is the caller's choice."""
    sizes = list(tensor.get("shape", ()))
    return {
        "type": "array",
        "prefixItems": [{"type": "integer", "minimum": 1} if size < 0 else {"const": size} for size in sizes],
        "minItems": len(sizes),
        "maxItems": len(sizes),
    }
