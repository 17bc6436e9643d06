"""Convert errors to RFC 9457 problem+json: a stable code, a message, a hint, and for 422 the wrong fields.

Each error class of the package maps to an HTTP status, so routes raise without handling. Unexpected errors become a 500
without details (middleware.py), and the log has the traceback.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from qtune_service.errors import (
    BusyError,
    DamagedFileError,
    DatabaseError,
    DataError,
    DatasetInUseError,
    DiskFullError,
    IdempotencyConflictError,
    IllegalMoveError,
    ModelError,
    NotAllowedError,
    NotFoundError,
    NotSignedInError,
    OutputConflictError,
    QTuneError,
    QueryError,
    SpecError,
    StorageError,
    TooLargeError,
    TooSlowError,
)
from qtune_service.spec_files import error_text
from qtune_service.wire import FieldProblem, Problem

MEDIA_TYPE = "application/problem+json"
STATUSES: dict[type[QTuneError], int] = {
    NotFoundError: 404,
    NotSignedInError: 401,
    NotAllowedError: 403,
    IllegalMoveError: 409,
    IdempotencyConflictError: 409,
    OutputConflictError: 409,
    DatasetInUseError: 409,
    TooSlowError: 408,
    TooLargeError: 413,
    QueryError: 422,
    SpecError: 422,
    DataError: 422,
    ModelError: 422,
    DamagedFileError: 409,
    StorageError: 503,
    DiskFullError: 507,
    BusyError: 503,
    DatabaseError: 503,
}
CODES = {413: "too_large", 422: "invalid_request"}
"""Codes of statuses whose name differs between Python versions."""
DESCRIPTIONS = {
    400: "The body could not be read.",
    401: "The token is missing or invalid.",
    403: "The scope of the token does not suffice, or the administrator does not allow this.",
    404: "The resource does not exist.",
    408: "The body arrived too slowly.",
    409: "The state of the resource does not allow this.",
    413: "The body is too large.",
    416: "The range is outside of the file.",
    422: "Fields are invalid.",
    503: "The database or storage does not respond.",
}
"""Descriptions of statuses in the OpenAPI document."""
MAX_LISTED, MAX_FIELD_CHARS, MAX_MESSAGE_CHARS = 20, 200, 500
"""Limits of the listed fields, and of the length of each name and message."""
_log = logging.getLogger(__name__)


class BodyTooLargeError(HTTPException):
    """A request body over the limit: an HTTPException, because FastAPI passes only these while it reads a body."""

    code = CODES[413]
    hint = "Upload large data with POST /api/v1/datasets, or give its path."

    def __init__(self, max_bytes: int) -> None:
        super().__init__(413, f"the body has more than {max_bytes:,} bytes")


class InvalidBodyError(RequestValidationError):
    """A body that its model rejects, with the listed errors and the number of all errors."""

    def __init__(self, errors: list[dict[str, Any]], total: int) -> None:
        super().__init__(errors)
        self.total = total


def answer(
    status: int, code: str, detail: str, hint: str = "", errors: list[FieldProblem] | None = None
) -> JSONResponse:
    """Return a problem response."""
    title = HTTPStatus(status).phrase
    body = Problem(title=title, status=status, code=code, detail=detail, hint=hint, errors=errors or [])
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {}
    return JSONResponse(body.model_dump(), status_code=status, media_type=MEDIA_TYPE, headers=headers)


def failures(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Describe the problem responses of a route for OpenAPI."""
    return {status: {"model": Problem, "description": DESCRIPTIONS[status]} for status in statuses}


def install(app: FastAPI) -> None:
    """Install handlers that convert every error to a problem."""

    @app.exception_handler(QTuneError)
    def _known(_request: Request, error: QTuneError) -> JSONResponse:
        status = next((STATUSES[kind] for kind in type(error).__mro__ if kind in STATUSES), 500)
        if status >= 500:
            _log.error("%s", error)
        return answer(status, error.code, error.message, error.hint)

    @app.exception_handler(RequestValidationError)
    def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        found = error.errors()
        total = error.total if isinstance(error, InvalidBodyError) else len(found)
        fields = [
            FieldProblem(field=_field(e["loc"]), message=_cut(error_text(e["msg"]), MAX_MESSAGE_CHARS))
            for e in found[:MAX_LISTED]
        ]
        listed = "" if total <= len(fields) else f"; the first {len(fields)} are listed"
        return answer(422, "invalid_request", f"{total} field(s) are invalid{listed}", errors=fields)

    @app.exception_handler(HTTPException)
    def _http(_request: Request, error: HTTPException) -> JSONResponse:
        code = CODES.get(error.status_code, HTTPStatus(error.status_code).name.lower())
        response = answer(error.status_code, code, str(error.detail), getattr(error, "hint", ""))
        response.headers.update(error.headers or {})
        return response


def _field(place: Any) -> str:
    """Return `prune.sample_keep_ratio` for ("body", "prune", "sample_keep_ratio")."""
    text = ".".join(_cut(str(part), MAX_FIELD_CHARS) for part in place[1:] or place)
    return _cut(text, MAX_FIELD_CHARS)


def _cut(text: str, chars: int) -> str:
    """Truncate a text, and escape surrogates that a client may have sent."""
    short = text if len(text) <= chars else f"{text[: chars - 1]}…"
    return short.encode(errors="backslashreplace").decode()
