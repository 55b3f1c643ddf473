"""``/openapi.json``: what this server really answers, said once for all of its addresses.

MONAI Label describes its own routes, of which many are shadowed by this app's, and no error but two. Here the route
that answers is the one that is described, with the errors of the layers around it, the roles it asks for and the forms
of ids.
"""

from __future__ import annotations

import re
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from lib.access.policy import PUBLIC, role_needed
from lib.access.sessions import COOKIE

_ERRORS = {
    "400": "The request is malformed, or a value is none that this server knows",
    "401": "No token, or none that is valid",
    "403": "Not with this role, or not on this server",
    "404": "No such image, label, model, job, session or result",
    "409": "It clashes with what another one did meanwhile",
    "413": "The body is larger than this server takes",
    "414": "The address is longer than this server takes",
    "422": "A value has not the form that is described here, or the scan is none the model was made for",
    "429": "Too many attempts to sign in",
    "431": "The headers are longer than this server takes",
    "502": "The DICOMweb archive did not answer, or refused",
    "503": "Too many wait, or the server is about to end; Retry-After says when to come again",
    "504": "The DICOMweb archive did not answer in time",
    "507": "The disk is full",
}
_NOT_ON_READING = {"409", "413", "507"}
# Answers that are files; which kind depends on what there is.
_FILES = {
    ("get", "/datastore/image"), ("get", "/datastore/label"), ("get", "/datastore/dataset"), ("get", "/model/{model}"),
    ("post", "/infer/{model}"), ("get", "/anomaly/results/{image}/{name}"), ("get", "/session/{session_id}"),
    ("get", "/anomaly/dicom/{image}/{kind}.dcm"), ("get", "/anomaly/evaluation/{report}/{name}"),
    ("get", "/anomaly/evaluation/{report}/"), ("get", "/anomaly/models/{model}/card"), ("get", "/anomaly/reviews/"),
    ("get", "/anomaly/metrics"), ("get", "/logs/"), ("get", "/logs/gpu"),
}  # fmt: skip
_IMAGE = r"^(?![.~ ])(?!.*\.\.)[^\x00-\x1f\x7f/\\]{0,127}[^\x00-\x1f\x7f/\\. ]$"
_PATTERNS = {
    "image": _IMAGE, "id": _IMAGE, "label": _IMAGE, "tag": "^[A-Za-z0-9_-]{1,64}$",
    "session_id": "^[A-Za-z0-9-]{1,64}$",
}  # fmt: skip


def describe_server(server: FastAPI) -> None:
    """From now on ``/openapi.json`` is made here, when it is first asked for."""

    def openapi() -> dict[str, Any]:
        if server.openapi_schema is None:
            server.openapi_schema = schema(server)
        return server.openapi_schema

    server.openapi = openapi  # type: ignore[method-assign]
    server.openapi_schema = None


def schema(server: FastAPI) -> dict[str, Any]:
    """The OpenAPI document of the routes that answer."""
    routes, hidden = _routes(server)
    made = get_openapi(
        title=server.title,
        version=server.version,
        openapi_version=server.openapi_version,
        description="Learnt from healthy brains. Research use only; not a medical device.",
        routes=routes,
    )
    for path, method in hidden:
        made["paths"].get(path, {}).pop(method, None)
    made["paths"] = {path: operations for path, operations in sorted(made["paths"].items()) if operations}
    parts = made.setdefault("components", {})
    parts.setdefault("schemas", {})["Error"] = {
        "title": "Error",
        "type": "object",
        "properties": {"detail": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]}},
        "required": ["detail"],
    }
    parts["securitySchemes"] = {
        "token": {"type": "http", "scheme": "bearer", "description": "main.py tokens create"},
        "session": {"type": "apiKey", "in": "cookie", "name": COOKIE, "description": "Made by /anomaly/login"},
    }
    for path, operations in made["paths"].items():
        for method, operation in operations.items():
            if "responses" in operation:
                _complete(path, method, operation)
    return made


def allowed(server: FastAPI, path: str) -> list[str]:
    """The methods that are described for an address; the router itself tells those of the first route it meets."""
    methods = [
        method.upper()
        for template, operations in server.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"\\{[^}]*\\}", "[^/]+", re.escape(template)), path)
        for method, operation in operations.items()
        if "responses" in operation
    ]
    return sorted(set(methods))


def _routes(server: FastAPI) -> tuple[list[BaseRoute], set[tuple[str, str]]]:
    """All routes so that the one that answers comes last, and what is answered by one that is not to be described."""
    own = [route for route in server.router.routes if isinstance(route, APIRoute)]
    others = [route for route in server.router.routes if not isinstance(route, APIRoute)]
    first: dict[tuple[str, str], APIRoute] = {}
    for route in own:
        for method in route.methods:
            first.setdefault((route.path_format, method.lower()), route)
    hidden = {key for key, route in first.items() if not route.include_in_schema}
    return [*others, *reversed(own)], hidden


def _complete(path: str, method: str, operation: dict[str, Any]) -> None:
    responses = operation["responses"]
    roles = role_needed(method.upper(), path)
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    for status, text in _ERRORS.items():
        if method in {"get", "head"} and status in _NOT_ON_READING and not path.startswith("/anomaly/dicom"):
            continue
        if status in responses and "content" in responses[status] and status != "422":
            continue
        responses[status] = {"description": text, **({} if method == "head" else {"content": content})}
    if roles is PUBLIC:
        operation["security"] = []
    else:
        operation["security"] = [{"token": []}, {"session": []}]
        operation["x-roles"] = sorted(roles)
    if method == "head":
        responses["200"].pop("content", None)
    elif (method, path) in _FILES:
        responses["200"]["content"] = {"*/*": {}}
    for parameter in operation.get("parameters", ()):
        form = parameter.get("schema", {})
        if parameter["name"] in _PATTERNS and form.get("type") == "string":
            form.setdefault("pattern", _PATTERNS[parameter["name"]])
