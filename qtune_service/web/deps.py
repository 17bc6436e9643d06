"""What routes need, by FastAPI's dependencies: the server's parts, and who asks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy import Engine

from qtune_service.errors import NotAllowedError, NotSignedInError
from qtune_service.jobs.access import Scope, TokenStore
from qtune_service.jobs.policy import Policy
from qtune_service.jobs.service import JobService
from qtune_service.settings import Settings
from qtune_service.web.events import Changes


@dataclass(frozen=True, slots=True)
class Server:
    """The parts of a running server."""

    settings: Settings
    database: Engine
    jobs: JobService
    tokens: TokenStore
    policy: Policy
    changes: Changes


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and what they may do."""

    name: str
    scope: Scope


def server_of(request: Request) -> Server:
    """The server that got the request."""
    server: Server = request.app.state.server
    return server


TheServer = Annotated[Server, Depends(server_of)]
_bearer = HTTPBearer(auto_error=False, description="An API token: `qtune token create`.")


def caller(server: TheServer, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)]) -> Caller:
    """Raises NotSignedInError. On a server that only this machine reaches, or that is insecure, all may do all."""
    if bearer is not None:
        if (token := server.tokens.check(bearer.credentials)) is not None:
            return Caller(token.name, token.scope)
        raise NotSignedInError("the token is not valid", "It may have expired or been revoked; ask the server's owner.")
    if server.settings.needs_tokens:
        raise NotSignedInError("this server wants a token", "Send `Authorization: Bearer TOKEN`.")
    return Caller("local", Scope.admin)


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


Reader = Annotated[Caller, Depends(reader)]
Submitter = Annotated[Caller, Depends(submitter)]
