"""When a request is sent again: where nothing came of it, or it may be repeated, and not for ever.

Repeated is what changes nothing by being sent twice: GET, HEAD, PUT, DELETE, and a POST with an Idempotency-Key. What
never reached the server, or was turned away at its door (429), is sent again in any case.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx
import stamina

BUSY = frozenset({429, 502, 503, 504})
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
LONGEST_WAIT_S = 60.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class TurnedAwayError(Exception):
    """The server, or a proxy before it, asks to come back."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def patiently(
    patience_s: float, *, may_repeat: bool, goes_on: Callable[[], bool] = lambda: True
) -> Iterable[stamina.Attempt]:
    """Attempts, with growing pauses, or those that the server asks for."""

    def wait(error: Exception) -> bool | float:
        if not goes_on():
            return False
        if isinstance(error, TurnedAwayError):
            asked = _retry_after(error.response)
            return (may_repeat or error.response.status_code == 429) and (True if asked is None else asked)
        return isinstance(error, _NOT_SENT) or (may_repeat and isinstance(error, httpx.TransportError))

    return stamina.retry_context(on=wait, attempts=None, timeout=patience_s, wait_max=5.0, wait_jitter=0.5)


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the server asks for, within reason."""
    text = response.headers.get("retry-after", "")
    if text.isdigit():
        return min(float(text), LONGEST_WAIT_S)
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)
