"""Routes and headers of the contract that another part brings: sign-in, the server's settings, the security policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def add_standins(app: FastAPI) -> FastAPI:
    """To an app of a server without tokens."""
    _add_policy(app)

    @app.get("/api/v1/session")
    def session() -> dict[str, Any]:
        return {"name": "local", "scope": "admin", "needs_token": False, "is_signed_in": True, "csrf_token": None}

    @app.get("/api/v1/server")
    def server() -> dict[str, Any]:
        settings = app.state.server.settings
        return {
            "version": "0", "needs_token": False, "allowed_inputs": settings.allowed_inputs,
            "allowed_outputs": settings.allowed_outputs, "allowed_models": settings.allowed_models,
            "allow_remote_code": False, "max_running_jobs": 1, "max_upload_bytes": 1 << 30,
            "launchers": ["local"], "default_launcher": "local",
        }  # fmt: skip

    return app


def _add_policy(app: FastAPI) -> None:
    @app.middleware("http")
    async def policy(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await answer(request)
        response.headers.setdefault("Content-Security-Policy", CSP)
        return response
