"""The loop of a child that answers requests: one at a time, each within a limit of processor time.

The child ends with its parent, also when that is killed: a thread watches the pipe that requests come from. A child
that holds much memory after an answer says so, ends, and is replaced.
"""

from __future__ import annotations

import os
import resource
import select
import threading
from collections.abc import Callable
from pathlib import Path

from qtune_service.server.isolation import worker_loop
from qtune_service.server.isolation.limits import limit_cpu_from_now

MAX_REQUEST_BYTES = 1 << 20
LAST_ANSWER = 1
"""Flag of an answer after which the child ends."""
RETIRE_SHARE = 0.6
"""Of the limit of memory: a child that holds more between requests is replaced, so that each request finds the rest.
What allocators have not given back counts, as it does for the limit."""


def serve(handle: Callable[[bytes], bytes], *, cpu_s: int) -> None:
    """Answer requests from standard input on standard output, until that is closed. cpu_s: for each."""
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what libraries print must not be taken for an answer
    threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
    worker_loop.send(answers, b"")
    while True:
        try:
            request, _ = worker_loop.receive(requests, MAX_REQUEST_BYTES)
        except worker_loop.BrokenFrameError:
            return
        limit_cpu_from_now(cpu_s)
        answer = handle(bytes(request))
        is_last = _holds_much()
        try:
            worker_loop.send(answers, answer, flags=LAST_ANSWER if is_last else 0)
        except worker_loop.BrokenFrameError:
            return
        if is_last:
            return


def _end_with_parent(requests: int) -> None:
    """Wait until nobody can write requests any more; no event is asked for, because POLLHUP always comes."""
    poll = select.poll()
    poll.register(requests, 0)
    poll.poll()
    os._exit(0)


def _holds_much() -> bool:
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return False
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * resource.getpagesize() > RETIRE_SHARE * limit
