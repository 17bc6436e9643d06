"""What routes need, by FastAPI's dependencies: the server's parts, and who asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from qtune_service.errors import NotAllowedError, NotSignedInError
from qtune_service.jobs.access import Scope, TokenStore
from qtune_service.jobs.policy import Policy
from qtune_service.jobs.service import JobService
from qtune_service.jobs.uploads import Datasets
from qtune_service.questions.client import Questions
from qtune_service.settings import Settings
from qtune_service.web.events import Changes
from qtune_service.web.metrics import Metrics
from qtune_service.web.origins import SAFE
from qtune_service.web.sessions import COOKIE, CSRF_HEADER, Sessions


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
    uploads: CapacityLimiter
    """Uploads that are received at a time; others wait, and so do their senders."""
    previews: CapacityLimiter
    """Previews that are made at a time."""
    questions: Questions
    """Questions to outputs, answered by child processes."""
    metrics: Metrics
    changes: Changes


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do."""

    name: str
    scope: Scope
    is_signed_in: bool = False
    csrf_token: str | None = None
    """Of a browser's session."""


class SignInNeededError(Exception):
    """A page is for people who are signed in; `back` is where they were going."""

    def __init__(self, back: str) -> None:
        super().__init__(back)
        self.back = back


def server_of(request: Request) -> Server:
    """The server that got the request."""
    server: Server = request.app.state.server
    return server


TheServer = Annotated[Server, Depends(server_of)]
_bearer = HTTPBearer(auto_error=False, description="An API token: `qtune token create`.")
_cookie = APIKeyCookie(
    name=COOKIE,
    auto_error=False,
    description=f"By `POST /api/v1/session`. What changes something needs the header {CSRF_HEADER} too.",
)


def maybe_caller(
    request: Request,
    server: TheServer,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    cookie: Annotated[str | None, Depends(_cookie)],
) -> Caller | None:
    """Who asks: by a bearer token, else by a cookie; None where somebody has neither and the server wants one.

    On a server that only this machine reaches, or that is insecure, all may do all. Raises NotSignedInError for a
    wrong bearer token, and NotAllowedError for a cookie without the session's CSRF token where it is needed.
    """
    if bearer is not None:
        if (token := server.tokens.check(bearer.credentials)) is not None:
            return Caller(token.name, token.scope, is_signed_in=True)
        raise NotSignedInError("the token is not valid", "It may have expired or been revoked; ask the server's owner.")
    if cookie is not None and (session := server.sessions.find(cookie)) is not None:
        if request.method not in SAFE and not session.has(request.headers.get(CSRF_HEADER, "")):
            raise NotAllowedError(f"the header {CSRF_HEADER} is missing or wrong", "GET /api/v1/session has its value.")
        return Caller(session.token.name, session.token.scope, is_signed_in=True, csrf_token=session.csrf_token)
    return None if server.settings.needs_tokens else Caller("local", Scope.admin)


SomeCaller = Annotated[Caller | None, Depends(maybe_caller)]


def caller(request: Request, who: SomeCaller) -> Caller:
    """Raises NotSignedInError."""
    if who is None:
        raise NotSignedInError("this server wants a token", "Send `Authorization: Bearer TOKEN`, or sign in.")
    request.state.caller = who.name  # for the log
    return who


def _require(caller: Caller, scope: Scope) -> Caller:
    if not caller.scope.includes(scope):
        raise NotAllowedError(f"this needs a token of scope {scope}", f"Yours is of scope {caller.scope}.")
    return caller


def reader(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """Anybody with a token."""
    return _require(who, Scope.read)


def submitter(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """Who may run jobs."""
    return _require(who, Scope.submit)


def page_reader(request: Request, who: SomeCaller) -> Caller:
    """Anybody with a token, for pages. Raises SignInNeededError, which sends a browser to /sign-in."""
    if who is None:
        raise SignInNeededError(local_path(f"{request.url.path}?{request.url.query}".rstrip("?")))
    return _require(who, Scope.read)


def local_path(text: str) -> str:
    """A place of this server to go to; `/` where a text is not surely one."""
    is_local = text.startswith("/") and not text.startswith("//") and text.isprintable() and "\\" not in text
    return text if is_local else "/"


Reader = Annotated[Caller, Depends(reader)]
Submitter = Annotated[Caller, Depends(submitter)]
PageReader = Annotated[Caller, Depends(page_reader)]
