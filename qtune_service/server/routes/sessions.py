"""Browser sessions (sign in, sign out), and the features of the server.

Failed sign-ins are not limited: a token has 256 random bits, so a limit would only lock out its owner.
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
    """Request to sign in."""

    model_config = ConfigDict(extra="forbid")

    token: Annotated[str, Field(min_length=1, max_length=200, description="An API token: `qtune token create`.")]


class SessionView(BaseModel):
    """The caller and its rights."""

    name: str | None = Field(description="Name of the token; `local` if the server requires none.")
    scope: Scope | None
    needs_token: bool = Field(description="True if this server requires a token.")
    is_signed_in: bool
    csrf_token: str | None = Field(
        description="Value of the header X-CSRF-Token for requests that change data with a session cookie."
    )


@router.post("", responses=failures(401, 403, 413, 422, 503))
def sign_in(body: SignIn, request: Request, response: Response, server: TheServer) -> SessionView:
    """Exchange an API token for the cookie `qtune_session`."""
    made = server.sessions.sign_in(body.token)
    if made is None:
        raise NotSignedInError("the token is not valid", "It may have expired or been revoked. Ask the administrator.")
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
    """Return the session of the caller, also for callers that are not signed in."""
    return SessionView(
        name=who.name if who else None,
        scope=who.scope if who else None,
        needs_token=server.settings.needs_tokens,
        is_signed_in=who is not None and who.is_signed_in,
        csrf_token=who.csrf_token if who else None,
    )


@router.delete("", status_code=204, responses=failures(403, 503))
def sign_out(request: Request, response: Response, server: TheServer) -> None:
    """End the session on all servers, and delete the cookie."""
    if (cookie := request.cookies.get(COOKIE)) is not None:
        server.sessions.sign_out(cookie)
    response.delete_cookie(COOKIE, httponly=True, samesite="strict")


server_router = APIRouter(tags=["server"])


@server_router.get("/server", responses=failures(401, 403, 503))
def get_server(server: TheServer, _who: Reader) -> ServerView:
    """Return the limits and features of this server."""
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
