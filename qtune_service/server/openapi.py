"""The contract: OpenAPI as clients are generated from it.

FastAPI describes what routes take and give. What is alike for all of them is added here, so that no route can forget
it: the problems that any request may meet, and that problems are application/problem+json.
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
    {"name": "outputs", "description": "What a finished job gave: numbers, samples with their tokens, files."},
    {"name": "session", "description": "Sign in with a browser: a cookie for an API token."},
    {"name": "server", "description": "What this server offers."},
    {"name": "operations", "description": "Probes and figures."},
]
DESCRIPTION = f"""Errors are `{MEDIA_TYPE}` (RFC 9457) with a stable `code`, a `hint`, and for 422 the wrong fields.

Every answer has an `X-Request-ID`, under which the server's log knows it; a request may bring its own."""


def operation_id(route: APIRoute) -> str:
    """The name of the route's function: stable, and unique."""
    return route.name


def install(app: FastAPI) -> None:
    """Describe an application so."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign] # as FastAPI says to do it


def describe(app: FastAPI) -> dict[str, Any]:
    """Its OpenAPI document."""
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
    """All operations of a document."""
    for path in document["paths"].values():
        yield from path.values()


def _responses(operation: dict[str, Any]) -> dict[str, Any]:
    """An operation's own, and those that it shares with others of its kind."""
    shared = {503}
    if operation.get("security"):
        shared |= {401, 403}
    if operation.get("parameters") or "requestBody" in operation:
        shared |= {422}
    if "requestBody" in operation:
        shared |= {400, 408, 413}
    told = {str(status): {"description": told["description"]} for status, told in failures(*shared).items()}
    found = {**told, **operation["responses"]}
    problem = {"content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    return {status: {**told, **problem} if status >= "400" else told for status, told in found.items()}
