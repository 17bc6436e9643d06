"""A service for tests of its pages: stopped and started again at the same address; and a page that complains aloud."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI

from qtune_service.server.http_server import make_http_server
from qtune_service.server.settings import Settings
from tests.waiting import free_port

WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 360, "height": 740}


@dataclass
class Site:
    """A server that can be away for a while. `make` gives its app anew."""

    make: Callable[[], FastAPI]
    port: int = 0
    app: FastAPI = field(init=False)

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Listen; the second time at the same port."""
        if not self.port:
            self.port = free_port()
        self.app = self.make()
        self._server = make_http_server(self.app, Settings(port=self.port), timeout_graceful_shutdown=1)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        """Be away."""
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def running(make: Callable[[], FastAPI]) -> Iterator[Site]:
    """Run a site until the block ends."""
    site = Site(make)
    site.start()
    try:
        yield site
    finally:
        site.stop()


@dataclass
class Seen:
    """What a page complained of, and asked for, while it was open."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


def open_page(browser: Any, url: str, **settings: Any) -> tuple[Any, Seen]:
    """Open a page in a browser of its own; return it and what it does. Violations of the security policy are
    complaints.
    """
    page, seen = browser.new_context(**{"viewport": WIDE, **settings}).new_page(), Seen()
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.set_default_timeout(15_000)
    page.goto(url)
    return page, seen
