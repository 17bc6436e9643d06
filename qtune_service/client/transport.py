"""HTTP transport to one server: addresses, authentication, retries, and errors.

Two httpx clients keep the token with its server: one sends the token and talks to the server only, the other follows
redirects to other hosts (presigned URLs of an object store) without it. A token is never sent over plain HTTP to
another machine unless the user allows it.

Retry policy: retry idempotent requests (GET, HEAD, PUT, DELETE, and POST with an Idempotency-Key), requests that never
reached the server, and 429/502/503/504, with backoff up to a time limit.

Error responses are problem+json. Their `code` selects the class in `errors.py`, so a caller catches the same
NotFoundError as in the server. Other codes become ApiError.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from ipaddress import ip_address
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import stamina
from pydantic import ValidationError

from qtune_service import __version__
from qtune_service.errors import ApiError, NotSignedInError, QTuneError, SettingsError, UnreachableError
from qtune_service.wire import Problem

DEFAULT_URL = "http://127.0.0.1:8420"
API = "/api/v1"
AGENT = {"User-Agent": f"qtune-client/{__version__}"}
BUSY = frozenset({429, 502, 503, 504})
REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
LONGEST_WAIT_S = 60.0
"""Largest pause that a Retry-After header can request."""
FIRST_PATIENCE_S = 1.0
"""Time to retry a server that has never responded: it is more likely absent than restarting."""
GIVE_A_TOKEN = "Give a token: QTUNE_TOKEN, --token-file, or `qtune jobs login`."
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


@dataclass(frozen=True, slots=True)
class Address:
    """The URL of a server and its token."""

    url: str
    """Base URL without a trailing slash."""
    token: str | None = field(default=None, repr=False)

    @classmethod
    def checked(cls, url: str, token: str | None = None, *, plain_http: bool = False) -> Self:
        """Validate URL and token. Raises SettingsError, also where the token would be sent in clear text."""
        clean = url.strip().rstrip("/").removesuffix(API)
        scheme, host = _parts(clean)
        if token is not None:
            token = token.strip()
            if not (token.isascii() and token.isprintable() and " " not in token and token):
                raise SettingsError("the token is invalid: it is empty, or contains spaces or other characters")
        if token is not None and scheme == "http" and not is_loopback(host) and not plain_http:
            raise SettingsError(
                f"{clean} is plain HTTP to another machine: others could read the token",
                "Use https:// or an SSH tunnel, or --plain-http (plain_http=True) if you trust the network.",
            )
        return cls(clean, token)

    @property
    def is_local(self) -> bool:
        """Return whether the server is on this machine."""
        return is_loopback(_parts(self.url)[1])


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port, which identify a server."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Return whether a host name is this machine, without a DNS query."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(url: str) -> tuple[str, str]:
    """Return scheme and host. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"{url!r} is not a URL: {error}", f"For example {DEFAULT_URL}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is not the URL of a server", f"For example {DEFAULT_URL}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError("a server URL must not contain a user, query or fragment", "Give the token separately.")
    return parts.scheme, parts.hostname.lower()


def error_of(response: httpx.Response) -> QTuneError:
    """Return the error of a failed response with its body read."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return _unexpected(response)
    message = problem.detail or problem.title
    if problem.errors:
        message += "".join(f"\n  {error.field}: {error.message}" for error in problem.errors)
    if problem.code == "not_signed_in" and "authorization" not in response.request.headers:
        return NotSignedInError(message, GIVE_A_TOKEN)
    if (kind := _error_classes().get(problem.code)) is not None and not problem.errors:
        return kind(message, problem.hint)
    fields = [(error.field, error.message) for error in problem.errors]
    return ApiError(message, problem.hint, problem.code, response.status_code, fields)


def unreachable(error: httpx.TransportError, url: str) -> UnreachableError:
    """Return the error of a request without a response."""
    reason = str(error) or type(error).__name__
    if isinstance(_root(error), ssl.SSLError):
        hint = "Name your own certificate in SSL_CERT_FILE. For a server without TLS use an http:// URL."
    elif isinstance(error, httpx.ConnectError):
        hint = "Start a server with `qtune serve`, or give its URL: --url, QTUNE_URL, or `qtune jobs login`."
    else:
        hint = "Try again. Running jobs are not affected."
    return UnreachableError(f"no answer from {url}: {reason}", hint)


def _error_classes() -> dict[str, type[QTuneError]]:
    return {kind("").code: kind for kind in _subclasses(QTuneError) if kind is not ApiError}


def _subclasses(kind: type[QTuneError]) -> Iterator[type[QTuneError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _unexpected(response: httpx.Response) -> ApiError:
    """Return the error of a response from another server, a proxy, or a redirected object store."""
    place = response.url.copy_with(query=None, path=None)  # a presigned URL's query is a secret
    hint = "Is the URL that of a Q-Tuning server?"
    if response.has_redirect_location:
        hint = f"It redirects to {response.url.join(response.headers['location']).copy_with(query=None)}"
    status = response.status_code
    return ApiError(f"{place} answered {status} {response.reason_phrase}", hint, "unexpected_answer", status)


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


class RetryLaterError(Exception):
    """The server, or a proxy before it, asked to retry later (429, 502, 503, 504)."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.status_code)
        self.response = response


def patiently(
    patience_s: float, *, may_repeat: bool, goes_on: Callable[[], bool] = lambda: True
) -> Iterable[stamina.Attempt]:
    """Yield attempts with backoff, or with the pauses that Retry-After requests."""

    def wait(error: Exception) -> bool | float:
        if not goes_on():
            return False
        if isinstance(error, RetryLaterError):
            asked = _retry_after(error.response)
            return (may_repeat or error.response.status_code == 429) and (True if asked is None else asked)
        return isinstance(error, _NOT_SENT) or (may_repeat and isinstance(error, httpx.TransportError))

    return stamina.retry_context(on=wait, attempts=None, timeout=patience_s, wait_max=5.0, wait_jitter=0.5)


def _retry_after(response: httpx.Response) -> float | None:
    """Return the seconds of Retry-After, at most LONGEST_WAIT_S."""
    text = response.headers.get("retry-after", "")
    if text.isdigit():
        return min(float(text), LONGEST_WAIT_S)
    try:
        seconds = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError):
        return None
    return min(max(seconds, 0.0), LONGEST_WAIT_S)


class Connection:
    """Connection to one server. Threads may share it."""

    def __init__(self, address: Address, *, timeout_s: float = 30.0, patience_s: float = 60.0) -> None:
        self.address = address
        self._timeout_s, self._patience_s = timeout_s, patience_s
        token = {"Authorization": f"Bearer {address.token}"} if address.token else {}
        # Proxies of the environment are not used for a server on this machine.
        self._client = httpx.Client(
            base_url=address.url + API, headers={**AGENT, **token}, timeout=timeout_s, trust_env=not address.is_local
        )
        self._store_client: httpx.Client | None = None
        self._lock = threading.Lock()
        self._has_answered = False

    def close(self) -> None:
        """Close all connections."""
        self._client.close()
        if self._store_client is not None:
            self._store_client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, method: str, path: str, *, is_safe: bool = False, patience_s: float | None = None, **more: Any
    ) -> httpx.Response:
        """Return a successful response. Raises QTuneError. is_safe: a POST that may be retried."""
        may_repeat = is_safe or method in REPEATABLE
        with self.translated():
            for attempt in self.attempts(may_repeat=may_repeat, patience_s=patience_s):
                with attempt:
                    response = self.send(method, path, **more)
            if method == "DELETE" and attempt.num > 1 and response.status_code == 404:
                return response  # an earlier attempt succeeded, and its response was lost
        if not response.is_success:
            raise error_of(response)
        return response

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send one request and return the response. Raises httpx.TransportError and RetryLaterError."""
        response = self._client.request(method, path, **more)
        self._note_response(response)
        return response

    @contextlib.contextmanager
    def stream(self, path: str, *, timeout_s: float | None = None, **more: Any) -> Iterator[httpx.Response]:
        """Open a streamed response, once. Raises QTuneError, httpx.TransportError and RetryLaterError."""
        timeout = httpx.Timeout(self._timeout_s, read=timeout_s or self._timeout_s)
        with self._client.stream("GET", path, timeout=timeout, **more) as response:
            yield self._checked(response)

    @contextlib.contextmanager
    def open_file(
        self, path: str, headers: Mapping[str, str], store_headers: Mapping[str, str]
    ) -> Iterator[httpx.Response]:
        """Open a file as a stream. Another host after a redirect gets `store_headers` and no token."""
        with self._client.stream("GET", path, headers=dict(headers)) as response:
            if not response.has_redirect_location:
                yield self._checked(response)
                return
            target = response.url.join(response.headers["location"])
        is_same_server = origin(str(target)) == origin(self.address.url)
        client, headers = (self._client, headers) if is_same_server else (self._without_token(), store_headers)
        with client.stream("GET", target, headers=dict(headers)) as response:
            yield self._checked(response)

    def attempts(
        self, *, may_repeat: bool, patience_s: float | None = None, goes_on: Callable[[], bool] = lambda: True
    ) -> Iterable[stamina.Attempt]:
        """Yield attempts by the retry policy; few if the server has never responded."""
        began = time.monotonic()

        def still() -> bool:
            return goes_on() and (self._has_answered or time.monotonic() - began < FIRST_PATIENCE_S)

        patience_s = self._patience_s if patience_s is None else patience_s
        return patiently(patience_s, may_repeat=may_repeat, goes_on=still)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Translate transport errors into QTuneError."""
        try:
            yield
        except RetryLaterError as busy:
            raise error_of(busy.response) from busy
        except httpx.TransportError as error:
            raise unreachable(error, self.address.url) from error

    def _checked(self, response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            response.read()
            self._note_response(response)
            raise error_of(response)
        self._has_answered = True
        return response

    def _note_response(self, response: httpx.Response) -> None:
        self._has_answered = True
        if response.status_code in BUSY:
            raise RetryLaterError(response)

    def _without_token(self) -> httpx.Client:
        with self._lock:
            if self._store_client is None:
                self._store_client = httpx.Client(headers=AGENT, timeout=self._timeout_s, follow_redirects=True)
            return self._store_client
