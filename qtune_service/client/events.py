"""Following a job and its log, over lost connections and restarts of the server.

Before each connection the job is asked for once: that waits for a server that is away, tells what has changed
meanwhile, and says whether anything more will come. Then Last-Event-ID asks for events that are newer; a log, which
only grows, is passed over as far as it is known.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx

from qtune_service.client.transport import Connection, TurnedAwayError
from qtune_service.errors import WaitTimeoutError
from qtune_service.wire import JobListItem, JobView

SILENCE_S = 45.0
"""The server says something every 15 s; one that does not for so long is gone."""
LOG_SILENCE_S = 300.0
"""A log may be silent for long; then it is looked whether the server is still there."""
PAUSE_S = 0.5
"""Before a broken connection is made again."""


def follow(
    connection: Connection,
    path: str,
    *,
    deadline: float | None = None,
    patience_s: float,
    lost: Callable[[], None] = lambda: None,
) -> Iterator[JobView]:
    """The job now, and at every change, until it has ended. lost: called when the connection breaks off."""
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
        except (httpx.TransportError, TurnedAwayError):
            pass
        _check(deadline, path)
        lost()
        time.sleep(PAUSE_S)


def _events(connection: Connection, path: str, before: JobView, seen: int, deadline: float | None) -> Iterator[JobView]:
    """Return the changes that one connection brings, with the spec that the job had before: it never changes.

    An event is lines of `name: value` that an empty line ends; ours have one line of data.
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
        raise WaitTimeoutError(f"job {path.rpartition('/')[2]} has not ended in time", "It goes on; wait longer.")


def _job(connection: Connection, path: str, patience_s: float) -> JobView:
    return JobView.model_validate_json(connection.request("GET", path, patience_s=patience_s).content)


def read_log(connection: Connection, path: str, tail: int | None, *, is_followed: bool) -> Iterator[str]:
    """Lines by one connection."""
    params: dict[str, Any] = {} if tail is None else {"tail": tail}
    if is_followed:
        params["follow"] = True
    silence_s = LOG_SILENCE_S if is_followed else None
    with connection.translated(), connection.stream(f"{path}/logs", params=params, timeout_s=silence_s) as response:
        yield from response.iter_lines()


def follow_log(connection: Connection, path: str, *, patience_s: float) -> Iterator[str]:
    """Lines from the first one until the job has ended."""
    known, rest = 0, b""
    while True:
        is_over = _job(connection, path, patience_s).status.is_final  # as it was before the log is read
        try:
            with connection.stream(f"{path}/logs", params={"follow": True}, timeout_s=LOG_SILENCE_S) as response:
                passed = 0
                for block in response.iter_bytes():
                    fresh = block[max(known - passed, 0) :]
                    passed += len(block)
                    known += len(fresh)
                    *lines, rest = (rest + fresh).split(b"\n")
                    for line in lines:
                        yield line.decode(errors="replace")
        except (httpx.TransportError, TurnedAwayError):
            is_over = False
            time.sleep(PAUSE_S)
        if is_over:
            break
    if rest:
        yield rest.decode(errors="replace")
