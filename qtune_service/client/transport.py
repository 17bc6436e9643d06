"""Requests to one server: with its token, tried again where that is safe, and errors as this package's own.

Two clients of httpx: one with the token that only ever asks the server, and one without that follows the server's
redirects to other hosts (presigned URLs of a store). So no mistake with headers can carry the token elsewhere.

Where a server is, and who asks: an URL and a token that belong together.

A token opens the server to whoever sees it, so one never goes over plain HTTP to another machine unless that is said.

What a server answers when something is wrong, as errors of this package.

A problem's `code` is the name of an error of `errors.py`, so a caller catches the same NotFoundError here as in the
server; other codes become ApiError.

When a request is sent again: where nothing came of it, or it may be repeated, and not for ever.

Repeated is what changes nothing by being sent twice: GET, HEAD, PUT, DELETE, and a POST with an Idempotency-Key. What
never reached the server, or was turned away at its door (429), is sent again in any case.
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


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and a token for it."""

    url: str
    """Without a slash at its end."""
    token: str | None = field(default=None, repr=False)

    @classmethod
    def checked(cls, url: str, token: str | None = None, *, plain_http: bool = False) -> Self:
        """Raises SettingsError for what is no server's URL, or would show the token to others on the way."""
        clean = url.strip().rstrip("/").removesuffix(API)
        scheme, host = _parts(clean)
        if token is not None:
            token = token.strip()
            if not (token.isascii() and token.isprintable() and " " not in token and token):
                raise SettingsError("the token is none: it is empty, or has spaces or other signs in it")
        if token is not None and scheme == "http" and not is_loopback(host) and not plain_http:
            raise SettingsError(
                f"{clean} is plain HTTP to another machine: the token could be read on the way",
                "Use https://, or an SSH tunnel; or, where you trust the network, --plain-http (plain_http=True).",
            )
        return cls(clean, token)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return is_loopback(_parts(self.url)[1])


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: two URLs with the same are one server's."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(url: str) -> tuple[str, str]:
    """Scheme and host. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"{url!r} is no URL: {error}", f"For example {DEFAULT_URL}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no URL of a server", f"For example {DEFAULT_URL}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError("a server's URL has no user, query or fragment", "Tokens are given apart from it.")
    return parts.scheme, parts.hostname.lower()


GIVE_A_TOKEN = "Give one: QTUNE_TOKEN, --token-file, or `qtune jobs login`."


def error_of(response: httpx.Response) -> QTuneError:
    """Of a response that failed, and whose body is read."""
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return _foreign(response)
    message = problem.detail or problem.title
    if problem.errors:
        message += "".join(f"\n  {error.field}: {error.message}" for error in problem.errors)
    if problem.code == "not_signed_in" and "authorization" not in response.request.headers:
        return NotSignedInError(message, GIVE_A_TOKEN)
    if (kind := _named().get(problem.code)) is not None and not problem.errors:
        return kind(message, problem.hint)
    fields = [(error.field, error.message) for error in problem.errors]
    return ApiError(message, problem.hint, problem.code, response.status_code, fields)


def unreachable(error: httpx.TransportError, url: str) -> UnreachableError:
    """Of a request that got no answer."""
    reason = str(error) or type(error).__name__
    if isinstance(_root(error), ssl.SSLError):
        hint = "A certificate of your own is named by SSL_CERT_FILE; a server without TLS has an http:// URL."
    elif isinstance(error, httpx.ConnectError):
        hint = "Start one with `qtune serve`, or say where it is: --url, QTUNE_URL, or `qtune jobs login`."
    else:
        hint = "Try again; jobs go on meanwhile."
    return UnreachableError(f"no answer from {url}: {reason}", hint)


def _named() -> dict[str, type[QTuneError]]:
    return {kind("").code: kind for kind in _below(QTuneError) if kind is not ApiError}


def _below(kind: type[QTuneError]) -> Iterator[type[QTuneError]]:
    for sub in kind.__subclasses__():
        yield sub
        yield from _below(sub)


def _foreign(response: httpx.Response) -> ApiError:
    """Of an answer that is not of the service: another server, a proxy, or storage behind a redirect."""
    place = response.url.copy_with(query=None, path=None)  # a presigned URL's query is a secret
    hint = "Is the URL that of a Q-Tuning server?"
    if response.has_redirect_location:
        hint = f"It sends elsewhere: {response.url.join(response.headers['location']).copy_with(query=None)}"
    status = response.status_code
    return ApiError(f"{place} answered {status} {response.reason_phrase}", hint, "unexpected_answer", status)


def _root(error: BaseException) -> BaseException:
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return error


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


FIRST_PATIENCE_S = 1.0
"""A server that has never answered is rather not there than just starting again."""
AGENT = {"User-Agent": f"qtune-client/{__version__}"}


class Connection:
    """Safe to be used by several threads."""

    def __init__(self, address: Address, *, timeout_s: float = 30.0, patience_s: float = 60.0) -> None:
        self.address = address
        self._timeout_s, self._patience_s = timeout_s, patience_s
        token = {"Authorization": f"Bearer {address.token}"} if address.token else {}
        # Variables of the environment name proxies, which are not asked for what is on this machine.
        self._client = httpx.Client(
            base_url=address.url + API, headers={**AGENT, **token}, timeout=timeout_s, trust_env=not address.is_local
        )
        self._stranger: httpx.Client | None = None
        self._lock = threading.Lock()
        self._has_answered = False

    def close(self) -> None:
        """End all connections."""
        self._client.close()
        if self._stranger is not None:
            self._stranger.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def request(
        self, method: str, path: str, *, is_safe: bool = False, patience_s: float | None = None, **more: Any
    ) -> httpx.Response:
        """A whole answer that is a success. Raises QTuneError. is_safe: a POST that may be sent twice."""
        may_repeat = is_safe or method in REPEATABLE
        with self.translated():
            for attempt in self.attempts(may_repeat=may_repeat, patience_s=patience_s):
                with attempt:
                    response = self.send(method, path, **more)
            if method == "DELETE" and attempt.num > 1 and response.status_code == 404:
                return response  # an earlier attempt did it, and its answer was lost
        if not response.is_success:
            raise error_of(response)
        return response

    def send(self, method: str, path: str, **more: Any) -> httpx.Response:
        """A whole answer, tried once. Raises httpx.TransportError and TurnedAwayError."""
        response = self._client.request(method, path, **more)
        self._look_at(response)
        return response

    @contextlib.contextmanager
    def stream(self, path: str, *, timeout_s: float | None = None, **more: Any) -> Iterator[httpx.Response]:
        """An answer whose body comes bit by bit; tried once. Raises httpx.TransportError and TurnedAwayError too."""
        timeout = httpx.Timeout(self._timeout_s, read=timeout_s or self._timeout_s)
        with self._client.stream("GET", path, timeout=timeout, **more) as response:
            yield self._good(response)

    @contextlib.contextmanager
    def open_file(self, path: str, headers: Mapping[str, str], strange: Mapping[str, str]) -> Iterator[httpx.Response]:
        """The same of a file, which may lie with another host: that one gets the headers `strange`, and no token."""
        with self._client.stream("GET", path, headers=dict(headers)) as response:
            if not response.has_redirect_location:
                yield self._good(response)
                return
            target = response.url.join(response.headers["location"])
        is_ours = origin(str(target)) == origin(self.address.url)
        client, headers = (self._client, headers) if is_ours else (self._without_token(), strange)
        with client.stream("GET", target, headers=dict(headers)) as response:
            yield self._good(response)

    def attempts(
        self, *, may_repeat: bool, patience_s: float | None = None, goes_on: Callable[[], bool] = lambda: True
    ) -> Iterable[stamina.Attempt]:
        """As retries.py; few where no server has ever answered."""
        began = time.monotonic()

        def still() -> bool:
            return goes_on() and (self._has_answered or time.monotonic() - began < FIRST_PATIENCE_S)

        patience_s = self._patience_s if patience_s is None else patience_s
        return patiently(patience_s, may_repeat=may_repeat, goes_on=still)

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Errors of the transport as this package's."""
        try:
            yield
        except TurnedAwayError as busy:
            raise error_of(busy.response) from busy
        except httpx.TransportError as error:
            raise unreachable(error, self.address.url) from error

    def _good(self, response: httpx.Response) -> httpx.Response:
        if not response.is_success:
            response.read()
            self._look_at(response)
            raise error_of(response)
        self._has_answered = True
        return response

    def _look_at(self, response: httpx.Response) -> None:
        self._has_answered = True
        if response.status_code in BUSY:
            raise TurnedAwayError(response)

    def _without_token(self) -> httpx.Client:
        with self._lock:
            if self._stranger is None:
                self._stranger = httpx.Client(headers=AGENT, timeout=self._timeout_s, follow_redirects=True)
            return self._stranger
