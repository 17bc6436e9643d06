"""Routes with a JSON body: authenticate the caller, then limit size and time, then parse and validate.

FastAPI reads and validates a body on the event loop, before it resolves the other dependencies. JsonRoute authenticates
the caller before it reads a byte, gives the body BODY_S to arrive, and parses large bodies in one worker thread for all
requests. A thread alone does not suffice, because the parser and the validator hold the GIL. So the
number of values is first estimated from the raw bytes, and a body with too many is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from email.message import Message
from itertools import islice
from typing import Any

import anyio
from anyio import to_thread
from fastapi import HTTPException
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from qtune_service.errors import TooSlowError
from qtune_service.server.dependencies import SCOPES, allow, server_of
from qtune_service.server.errors import MAX_LISTED, InvalidBodyError
from qtune_service.server.jobs.access import Scope
from qtune_service.wire import MAX_DEPTH, MAX_VALUES

BODY_S = 30.0
"""Time limit for receiving a body."""
SMALL_BYTES = 8 << 10
"""Bodies up to this size are parsed on the event loop, where a thread would cost more."""
SEPARATORS = (b"[", b"{", b",", b":")
MANY_ERRORS = 1000
NOT_READABLE = "There was an error parsing the body"


class JsonRoute(APIRoute):
    """Route with a body that is a model of wire.py."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return a handler that authorizes the caller, validates the body, and calls the route."""
        handle = super().get_route_handler()
        if self.body_field is None:
            return handle
        model: type[BaseModel] = self.body_field.field_info.annotation  # type: ignore[assignment]
        scope = _scope_of(self.dependant)

        async def handle_checked(request: Request) -> Response:
            server = await server_of(request)
            if scope is not None:
                await allow(request, server, scope)
            body = await _read(request)
            if not _is_json(request.headers.get("content-type", "")) or not body:
                return await handle(request)  # FastAPI reports the missing body or content type
            if len(body) <= SMALL_BYTES:
                value = _validated(model, body)
            else:
                value = await to_thread.run_sync(_validated, model, body, limiter=server.bodies)
            return await handle(_Checked(request, value))

        return handle_checked


class _Checked(Request):
    """A request with a validated body. FastAPI's own validation accepts the instance unchanged."""

    def __init__(self, request: Request, value: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        """Return a placeholder: FastAPI checks first that there is a body."""
        return b"{}"

    async def json(self) -> BaseModel:
        """Return the validated instance."""
        return self._value


def _scope_of(dependant: Dependant) -> Scope | None:
    """Return the scope that a route requires, or None for a public route."""
    return next((SCOPES[one.call] for one in dependant.dependencies if one.call in SCOPES), None)


async def _read(request: Request) -> bytes:
    """Read the body. Raises TooSlowError, and HTTPException if the client disconnects."""
    try:
        with anyio.fail_after(BODY_S):
            return await request.body()
    except TimeoutError:
        raise TooSlowError(f"the body did not arrive within {BODY_S:.0f} s", "Send the request again.") from None
    except ClientDisconnect:
        raise HTTPException(400, NOT_READABLE) from None


def _is_json(content_type: str) -> bool:
    message = Message()
    message["content-type"] = content_type
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))


def _validated(model: type[BaseModel], body: bytes) -> BaseModel:
    """Parse and validate a body. Raises InvalidBodyError, RequestValidationError or HTTPException."""
    if _num_values(body) > MAX_VALUES:
        raise RequestValidationError([{"loc": ("body",), "msg": f"the body has more than {MAX_VALUES:,} values"}])
    try:
        value = json.loads(body.decode("utf-8-sig", "surrogatepass"))  # in UTF-16 the count above would not hold
    except json.JSONDecodeError as error:
        raise RequestValidationError([{"loc": ("body", error.pos), "msg": "JSON decode error"}]) from None
    except RecursionError:  # too deep to be parsed
        raise HTTPException(400, f"the body is nested more than {MAX_DEPTH} levels deep") from None
    except ValueError:  # not UTF-8, or a number of thousands of digits
        raise HTTPException(400, NOT_READABLE) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidBodyError(_first_errors(model, value, error), error.error_count()) from None


def _num_values(body: bytes) -> int:
    """Return an upper bound on the values and keys of a JSON text, by counting separators."""
    if sum(map(body.count, SEPARATORS)) <= MAX_VALUES:  # the usual case: even with separators in strings
        return 0
    plain = body.replace(rb"\\", b"").replace(rb"\"", b"")
    outside_strings = b"".join(plain.split(b'"')[::2])
    return sum(map(outside_strings.count, SEPARATORS))


def _first_errors(model: type[BaseModel], value: Any, error: ValidationError) -> list[dict[str, Any]]:
    """Return the first errors. pydantic renders all or none, so many errors are taken from a shortened body."""
    if error.error_count() > MANY_ERRORS:
        try:
            model.model_validate(_shortened(value))
        except ValidationError as shortened:
            error = shortened
        else:
            return [{"loc": ("body",), "msg": f"{error.error_count()} values are wrong"}]
    return [
        {**one, "loc": ("body", *one["loc"])}
        for one in error.errors(include_url=False, include_context=False, include_input=False)[:MAX_LISTED]
    ]


def _shortened(value: Any) -> Any:
    """Return a value with the first items of each list and the first keys of each object."""
    if isinstance(value, list):
        return [_shortened(one) for one in value[:MAX_LISTED]]
    if isinstance(value, dict):
        return {name: _shortened(value[name]) for name in islice(value, 2 * MAX_LISTED)}
    return value
