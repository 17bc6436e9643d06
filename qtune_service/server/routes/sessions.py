"""Signing in with a browser: an API token for a cookie.

Guesses are not counted: a token has 256 bits of chance, so the limit would only lock out its owner.

What this server offers, for pages and clients: what may be read, run and uploaded here.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from qtune_service import __version__
from qtune_service.errors import NotSignedInError
from qtune_service.server.auth import COOKIE
from qtune_service.server.dependencies import Reader, SomeCaller, TheServer
from qtune_service.server.errors import failures
from qtune_service.server.jobs.access import Scope
from qtune_service.server.routes.json_body import JsonRoute
from qtune_service.wire import ServerView

router = APIRouter(prefix="/session", tags=["session"], route_class=JsonRoute)


class SignIn(BaseModel):
    """What signing in takes."""

    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, Field(min_length=1, max_length=200, description="An API token: `qtune token create`.")]


class SessionView(BaseModel):
    """Who asks, and what they may do."""

    name: str | None = Field(description="Of the token; `local` where none is needed.")
    scope: Scope | None
    needs_token: bool = Field(description="Whether this server lets in with a token only.")
    is_signed_in: bool
    csrf_token: str | None = Field(
        description="For the header X-CSRF-Token of requests that change something, where a cookie signs them in."
    )


@router.post("", responses=failures(401, 403, 413, 422, 503))
def sign_in(body: SignIn, request: Request, response: Response, server: TheServer) -> SessionView:
    """Take an API token, and set the cookie `qtune_session`."""
    made = server.sessions.sign_in(body.token)
    if made is None:
        raise NotSignedInError("the token is not valid", "It may have expired or been revoked; ask the server's owner.")
    session, cookie = made
    response.set_cookie(
        COOKIE,
        cookie,
        max_age=server.sessions.max_age_s,
        httponly=True,
        samesite="strict",
        secure=request.url.scheme == "https",
    )
    return SessionView(
        name=session.token.name,
        scope=session.token.scope,
        needs_token=server.settings.needs_tokens,
        is_signed_in=True,
        csrf_token=session.csrf_token,
    )


@router.get("", responses=failures(401, 503))
def get_session(server: TheServer, who: SomeCaller) -> SessionView:
    """Who you are to this server; also for those who are not signed in."""
    return SessionView(
        name=who.name if who else None,
        scope=who.scope if who else None,
        needs_token=server.settings.needs_tokens,
        is_signed_in=who is not None and who.is_signed_in,
        csrf_token=who.csrf_token if who else None,
    )


@router.delete("", status_code=204, responses=failures(403, 503))
def sign_out(request: Request, response: Response, server: TheServer) -> None:
    """End the session on all servers, and take the cookie away."""
    if (cookie := request.cookies.get(COOKIE)) is not None:
        server.sessions.sign_out(cookie)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


server_router = APIRouter(tags=["server"])


@server_router.get("/server", responses=failures(401, 403, 503))
def get_server(server: TheServer, _who: Reader) -> ServerView:
    """What this server allows and offers."""
    settings = server.settings
    return ServerView(
        version=__version__,
        needs_token=settings.needs_tokens,
        allowed_inputs=list(settings.allowed_inputs),
        allowed_outputs=list(settings.allowed_outputs),
        allowed_models=list(settings.allowed_models),
        allow_remote_code=settings.allow_remote_code,
        max_running_jobs=settings.max_running_jobs,
        max_upload_bytes=settings.max_upload_bytes,
        launchers=sorted(server.jobs.launchers),
        default_launcher=settings.launcher,
    )
