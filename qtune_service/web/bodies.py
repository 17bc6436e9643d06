"""A limit for request bodies, which are read into memory: JSON of this service is small. Uploads have their own."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qtune_service.web.problems import BodyTooLargeError, answer

MAX_BYTES = 1 << 20
UPLOADS = ("POST", "/api/v1/datasets")
"""Streamed to disk, never held."""


class BodyLimit:
    """Refuses larger ones, whether they say how large they are or not."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_BYTES) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or answer 413."""
        if scope["type"] != "http" or (scope["method"], scope["path"].rstrip("/")) == UPLOADS:
            await self._app(scope, receive, send)
            return
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told[:20]) > self._max_bytes:
            refusal = BodyTooLargeError(self._max_bytes)
            await answer(413, refusal.code, refusal.detail, refusal.hint)(scope, receive, send)
            return
        await self._app(scope, self._counted(receive), send)

    def _counted(self, receive: Receive) -> Receive:
        size = 0

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > self._max_bytes:
                raise BodyTooLargeError(self._max_bytes)
            return message

        return counted
