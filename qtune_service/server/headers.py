"""Headers that every answer has: what browsers may do with it. Pure ASGI, so that streams stay streams.

What a route sets itself stays; the report brings its own policy. Answers of the API are not stored by browsers or
proxies, since the next to ask may be somebody else; files say themselves how they are cached.
"""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
DATA_POLICY = "default-src 'none'; frame-ancestors 'none'"
"""For what is no page: should a browser take it for one, it can do nothing."""
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class SecurityHeaders:
    """Adds them."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on; add to the head of its answer."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _add(MutableHeaders(scope=message))
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def _add(headers: MutableHeaders) -> None:
    kind = headers.get("content-type", "").partition(";")[0].strip()
    headers.setdefault("Content-Security-Policy", PAGE_POLICY if kind == "text/html" else DATA_POLICY)
    for name, value in ALWAYS.items():
        headers.setdefault(name, value)
    if "sandbox" not in headers["Content-Security-Policy"]:  # browsers refuse a sandboxed page with an opener policy
        headers.setdefault("Cross-Origin-Opener-Policy", "same-origin")
    if kind in ("application/json", "application/problem+json", "text/plain"):
        headers.setdefault("Cache-Control", "no-store")
    elif kind == "text/html":
        headers.setdefault("Cache-Control", "private, no-cache")
