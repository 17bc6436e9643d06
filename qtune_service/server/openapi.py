"""Build the OpenAPI document from which clients are generated.

FastAPI describes the parameters and responses of routes. This module adds the responses that all routes share, as
application/problem+json, so that no route can omit them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute

from qtune_service.server.errors import MEDIA_TYPE, failures
from qtune_service.wire import Problem

TAGS = [
    {"name": "jobs", "description": "Submit, follow, cancel, resume, delete, prune again."},
    {"name": "outputs", "description": "Results of a finished job: numbers, samples with their tokens, files."},
    {"name": "session", "description": "Sign in a browser: exchange an API token for a cookie."},
    {"name": "server", "description": "Limits and features of this server."},
    {"name": "operations", "description": "Probes and metrics."},
]
DESCRIPTION = f"""Errors are `{MEDIA_TYPE}` (RFC 9457) with a stable `code`, a `hint`, and for 422 the wrong fields.

Every response has an `X-Request-ID`, which the server's log repeats. A request may set its own."""


def operation_id(route: APIRoute) -> str:
    """Return the name of the route's function, which is stable and unique."""
    return route.name


def install(app: FastAPI) -> None:
    """Install this description in an application."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI documents


def describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document of an application."""
    found = get_openapi(
        title=app.title,
        version=app.version,
        summary=app.summary,
        description=DESCRIPTION,
        routes=app.routes,
        tags=TAGS,
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    schemas = found["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas.setdefault("Problem", Problem.model_json_schema(ref_template="#/components/schemas/{model}"))
    for operation in operations(found):
        responses = operation["responses"] = _responses(operation)
        operation["responses"] = dict(sorted(responses.items()))
    return found


def operations(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield all operations of a document."""
    for path in document["paths"].values():
        yield from path.values()


def _responses(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the responses of an operation: its own, and those shared by its kind."""
    shared = {503}
    if operation.get("security"):
        shared |= {401, 403}
    if operation.get("parameters") or "requestBody" in operation:
        shared |= {422}
    if "requestBody" in operation:
        shared |= {400, 408, 413}
    common = {str(status): {"description": one["description"]} for status, one in failures(*shared).items()}
    found = {**common, **operation["responses"]}
    problem = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {status: {**one, **problem} if status >= "400" else one for status, one in found.items()}
