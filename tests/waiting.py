"""Wait for conditions that another thread, process or server fulfils, and find free ports for servers."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeVar

import httpx

T = TypeVar("T")


def wait_until(
    reached: Callable[[], T | None],
    seconds: float = 20,
    *,
    every_s: float = 0.05,
    explain: Callable[[], object] | None = None,
) -> T:
    """Call `reached` until its result is true, and return this result. Fail with `explain()` after the time limit."""
    deadline_s = time.monotonic() + seconds
    while not (result := reached()):
        assert time.monotonic() < deadline_s, f"not within {seconds:g} s: {explain() if explain else reached}"
        time.sleep(every_s)
    return result


def wait_until_ready(
    client: httpx.Client, *, path: str = "/readyz", process: subprocess.Popen[Any] | None = None, seconds: float = 60
) -> None:
    """Wait until a server answers a path with success. Fail if its process ends before."""

    def is_ready() -> bool:
        assert process is None or process.poll() is None, f"the server ended with status {process.returncode}"
        try:
            return client.get(path).is_success
        except httpx.TransportError:
            return False

    wait_until(is_ready, seconds)


def wait_for_answer(client: httpx.Client, path: str, reached: Callable[[Any], object], seconds: float = 240) -> Any:
    """Return the JSON of a path once `reached(JSON)` is true. The server may be starting."""
    latest: list[Any] = []

    def look() -> bool:
        try:
            latest[:] = [client.get(path).raise_for_status().json()]
        except httpx.TransportError:
            return False
        return bool(reached(latest[0]))

    wait_until(look, seconds, every_s=0.1, explain=lambda: f"{latest}\n{client.get(f'{path}/logs').text}")
    return latest[0]


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
