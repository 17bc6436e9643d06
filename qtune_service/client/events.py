"""Follow a job and its log across lost connections and server restarts.

Before each connection one GET of the job waits for an unreachable server, reports changes that were missed, and shows
whether the job has ended. Last-Event-ID then requests newer events only. A log only grows, so bytes that were already
read are skipped.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from qtune_service.client.transport import Connection, RetryLaterError
from qtune_service.errors import WaitTimeoutError
from qtune_service.wire import JobListItem, JobView

SILENCE_S = 45.0
"""Read timeout of an event stream. The server sends at least one line every 15 s."""
LOG_SILENCE_S = 300.0
"""Read timeout of a log, after which the client reconnects. A log may be silent for long."""
PAUSE_S = 0.5
"""Pause before reconnecting."""


def follow(
    connection: Connection,
    path: str,
    *,
    deadline: float | None = None,
    patience_s: float,
    lost: Callable[[], None] = lambda: None,
) -> Iterator[JobView]:
    """Yield the job now and at every change until it ends. lost: called when the connection breaks."""
    seen = 0
    while True:
        found = _job(connection, path, patience_s)
        if found.version > seen:
            seen = found.version
            yield found
        if found.status.is_final:
            return
        try:
            for job in _events(connection, path, found, seen, deadline):
                seen = job.version
                yield job
                if job.status.is_final:
                    return
        except (httpx.TransportError, RetryLaterError):
            pass
        _check(deadline, path)
        lost()
        time.sleep(PAUSE_S)


def _events(connection: Connection, path: str, before: JobView, seen: int, deadline: float | None) -> Iterator[JobView]:
    """Yield the changes that one connection delivers. Events carry no spec, which never changes: it is `before`'s.

    An event is a block of `name: value` lines that ends with an empty line. Ours have one data line.
    """
    headers = {"Last-Event-ID": str(seen), "Accept": "text/event-stream"}
    silence_s = SILENCE_S if deadline is None else min(SILENCE_S, max(deadline - time.monotonic(), 0.01))
    with connection.stream(f"{path}/events", headers=headers, timeout_s=silence_s) as response:
        for line in response.iter_lines():
            if line.startswith("data:"):
                item = JobListItem.model_validate_json(line.removeprefix("data:").strip())
                yield JobView(**dict(item), spec=before.spec)
            _check(deadline, path)


def _check(deadline: float | None, path: str) -> None:
    if deadline is not None and time.monotonic() >= deadline:
        raise WaitTimeoutError(
            f"job {path.rpartition('/')[2]} has not ended in time", "The job is still running. Wait longer."
        )


def _job(connection: Connection, path: str, patience_s: float) -> JobView:
    return JobView.model_validate_json(connection.request("GET", path, patience_s=patience_s).content)


def read_log(connection: Connection, path: str, tail: int | None, *, is_followed: bool) -> Iterator[str]:
    """Yield the lines of a log over one connection."""
    params: dict[str, Any] = {} if tail is None else {"tail": tail}
    if is_followed:
        params["follow"] = True
    silence_s = LOG_SILENCE_S if is_followed else None
    with connection.translated(), connection.stream(f"{path}/logs", params=params, timeout_s=silence_s) as response:
        yield from response.iter_lines()


def follow_log(connection: Connection, path: str, *, patience_s: float) -> Iterator[str]:
    """Yield the lines of a log from the first one until the job ends."""
    known, rest = 0, b""
    while True:
        is_over = _job(connection, path, patience_s).status.is_final  # before the log is read
        try:
            with connection.stream(f"{path}/logs", params={"follow": True}, timeout_s=LOG_SILENCE_S) as response:
                position = 0
                for block in response.iter_bytes():
                    fresh = block[max(known - position, 0) :]
                    position += len(block)
                    known += len(fresh)
                    *lines, rest = (rest + fresh).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
        except (httpx.TransportError, RetryLaterError):
            is_over = False
            time.sleep(PAUSE_S)
        if is_over:
            break
    if rest:
        yield rest.decode(errors="replace")
