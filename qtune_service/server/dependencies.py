"""FastAPI dependencies of the routes: the parts of the server, and the authenticated caller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine
from starlette.concurrency import run_in_threadpool

from qtune_service.errors import NotAllowedError, NotSignedInError
from qtune_service.server.auth import COOKIE, CSRF_HEADER, SAFE, Sessions
from qtune_service.server.events import Changes
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.policy import Policy
from qtune_service.server.jobs.service import JobService
from qtune_service.server.jobs.uploads import Datasets, UploadSlots
from qtune_service.server.metrics import Metrics, Readiness
from qtune_service.server.questions.client import Questions
from qtune_service.server.settings import Settings


def policy_of(settings: Settings) -> Policy:
    """Build the policy of allowed inputs, outputs and models from the settings."""
    own = (settings.outputs, f"{settings.data_root}/outputs")
    return Policy(
        inputs=settings.allowed_inputs,
        outputs=tuple(dict.fromkeys((*own, *settings.allowed_outputs))),
        models=settings.allowed_models,
        remote_code=settings.allow_remote_code,
    )


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of a running server."""

    settings: Settings
    database: Engine
    jobs: JobService
    tokens: TokenStore
    sessions: Sessions
    policy: Policy
    datasets: Datasets
    uploads: UploadSlots
    """Concurrent uploads, in total and by owner. Further uploads wait."""
    bodies: CapacityLimiter
    """Large JSON bodies that are parsed concurrently."""
    readiness: Readiness
    previews: CapacityLimiter
    """Concurrent previews."""
    questions: Questions
    """Queries on outputs, run by child processes."""
    metrics: Metrics
    changes: Changes


@dataclass(frozen=True, slots=True)
class Caller:
    """Authenticated caller and its scope."""

    name: str
    scope: Scope
    is_signed_in: bool = False
    csrf_token: str | None = None
    """CSRF token of a browser session."""


class SignInNeededError(Exception):
    """A page requires a signed-in browser. `back` is the requested path."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


async def server_of(request: Request) -> Server:
    """Return the server that received the request."""
    server: Server = request.app.state.server
    return server


TheServer = Annotated[Server, Depends(server_of)]
_bearer = HTTPBearer(auto_error=False, description="An API token: `qtune token create`.")
_cookie = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    description=f"Set by `POST /api/v1/session`. Requests that change data also need the header {CSRF_HEADER}.",
)


async def maybe_caller(
    request: Request,
    server: TheServer,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    cookie: Annotated[str | None, Depends(_cookie)],
) -> Caller | None:
    """Return the caller by bearer token, else by cookie; None without either if the server requires a token.

    A server that is local or insecure grants every caller all rights. The lookup runs once a request, also after
    JsonRoute. Raises NotSignedInError for an invalid bearer token, and NotAllowedError for a cookie without the CSRF
    token where one is required.
    """
    if not hasattr(request.state, "found_caller"):
        request.state.found_caller = await _find(request, server, bearer, cookie)
    found: Caller | None = request.state.found_caller
    return found


async def _find(
    request: Request, server: Server, bearer: HTTPAuthorizationCredentials | None, cookie: str | None
) -> Caller | None:
    if bearer is not None:
        if (token := await run_in_threadpool(server.tokens.check, bearer.credentials)) is not None:
            return Caller(token.name, token.scope, is_signed_in=True)
        raise NotSignedInError("the token is not valid", "It may have expired or been revoked. Ask the administrator.")
    if cookie is not None and (session := await run_in_threadpool(server.sessions.find, cookie)) is not None:
        if request.method not in SAFE and not session.has(request.headers.get(CSRF_HEADER, "")):
            raise NotAllowedError(f"the header {CSRF_HEADER} is missing or wrong", "GET /api/v1/session has it.")
        return Caller(session.token.name, session.token.scope, is_signed_in=True, csrf_token=session.csrf_token)
    return None if server.settings.needs_tokens else Caller("local", Scope.admin)


SomeCaller = Annotated[Caller | None, Depends(maybe_caller)]


async def caller(request: Request, who: SomeCaller) -> Caller:
    """Return the caller. Raises NotSignedInError."""
    if who is None:
        raise NotSignedInError("this server requires a token", "Send `Authorization: Bearer TOKEN`, or sign in.")
    request.state.caller = who.name  # for the log
    return who


async def allow(request: Request, server: Server, scope: Scope) -> Caller:
    """Authorize a request before its body is read. Raises NotSignedInError and NotAllowedError."""
    found = await maybe_caller(request, server, await _bearer(request), await _cookie(request))
    return _require(await caller(request, found), scope)


def _require(caller: Caller, scope: Scope) -> Caller:
    if not caller.scope.includes(scope):
        raise NotAllowedError(f"a token of scope {scope} is required", f"Your token has scope {caller.scope}.")
    return caller


async def reader(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """Require any token."""
    return _require(who, Scope.read)


async def submitter(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """Require a token that may run jobs."""
    return _require(who, Scope.submit)


SCOPES: Mapping[Any, Scope] = {reader: Scope.read, submitter: Scope.submit}
"""Scope required by each dependency."""


async def page_reader(request: Request, who: SomeCaller) -> Caller:
    """Require any token, for pages. Raises SignInNeededError, which redirects to /sign-in."""
    if who is None:
        raise SignInNeededError(safe_redirect(f"{request.url.path}?{request.url.query}".rstrip("?")))
    return _require(who, Scope.read)


def safe_redirect(text: str) -> str:
    """Return a redirect target on this server, or `/` for a text that a browser could read as another host.

    `/.//evil.example` becomes `//evil.example` once dots are resolved. No path of this server has two slashes.
    """
    path = text.partition("?")[0].partition("#")[0]
    is_local = path.startswith("/") and "//" not in path and text.isprintable() and "\\" not in text
    return text if is_local else "/"


Reader = Annotated[Caller, Depends(reader)]
Submitter = Annotated[Caller, Depends(submitter)]
PageReader = Annotated[Caller, Depends(page_reader)]
