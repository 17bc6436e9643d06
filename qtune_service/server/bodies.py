"""A limit for request bodies, which are read into memory: JSON of this service is small. Uploads have their own."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qtune_service.server.errors import BodyTooLargeError, answer

MAX_BYTES = 1 << 20
SESSION, SESSION_BYTES = "/api/v1/session", 4 << 10
"""Open to everybody, and takes a token alone."""
UPLOADS = ("POST", "/api/v1/datasets")
"""Streamed to disk, never held."""


class BodyLimit:
    """Refuses larger ones, whether they say how large they are or not."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413."""
        path = scope["path"].rstrip("/") if scope["type"] == "http" else ""
        if scope["type"] != "http" or (scope["method"], path) == UPLOADS:
            await self._app(scope, receive, send)
            return
        max_bytes = SESSION_BYTES if path == SESSION else MAX_BYTES
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told[:20]) > max_bytes:
            refusal = BodyTooLargeError(max_bytes)
            await answer(413, refusal.code, refusal.detail, refusal.hint)(scope, receive, send)
            return
        await self._app(scope, _counted(receive, max_bytes), send)


def _counted(receive: Receive, max_bytes: int) -> Receive:
    size = 0

    async def counted() -> Message:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > max_bytes:
            raise BodyTooLargeError(max_bytes)
        return message

    return counted
