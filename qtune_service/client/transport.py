"""Requests to one server: with its token, tried again where that is safe, and errors as this package's own.

Two clients of httpx: one with the token that only ever asks the server, and one without that follows the server's
redirects to other hosts (presigned URLs of a store). So no mistake with headers can carry the token elsewhere.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Self

import httpx
import stamina

from qtune_service import __version__
from qtune_service.client.address import API, Address, origin
from qtune_service.client.answers import error_of, unreachable
from qtune_service.client.retries import BUSY, REPEATABLE, TurnedAwayError, patiently

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
