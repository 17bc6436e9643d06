"""Exchange messages on a pipe, and run the loop of a child that answers requests.

A message has one byte of flags, eight bytes of length, and the body. The parent does not trust its child, so it reads
with a deadline and a limit on the length.

The child answers one request at a time, each within a limit of processor time. It ends with its parent, even when that
is killed, because a thread watches the pipe of requests. A child that holds much memory after an answer sets a flag in
it, ends, and is replaced.
"""

from __future__ import annotations

import os
import resource
import select
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path

from qtune_service.server.isolation.limits import limit_cpu_from_now

_HEAD = struct.Struct("<BQ")
BLOCK_BYTES = 1 << 20
MAX_REQUEST_BYTES = 1 << 20
LAST_ANSWER = 1
"""Flag of an answer after which the child ends."""
RETIRE_SHARE = 0.6
"""Share of the memory limit above which a child is replaced between requests, so that each request finds the rest free.
Memory that allocators keep counts, as it does for the limit."""


class BrokenFrameError(Exception):
    """The other side closed the pipe before the end of a message."""


class FrameTooLargeError(Exception):
    """A message is longer than the reader accepts."""


class FrameLateError(Exception):
    """A message was not complete in time."""


def send(fd: int, body: bytes, *, flags: int = 0, within_s: float | None = None) -> None:
    """Write a message. Raise BrokenFrameError and FrameLateError. within_s requires a non-blocking descriptor."""
    deadline_s = None if within_s is None else time.monotonic() + within_s
    left = memoryview(_HEAD.pack(flags, len(body)) + body)
    while left:
        _wait(fd, select.POLLOUT, deadline_s)
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            continue
        except BrokenPipeError:
            raise BrokenFrameError from None


def receive(fd: int, max_bytes: int, *, within_s: float | None = None) -> tuple[bytearray, int]:
    """Read a message and return body and flags. Raise BrokenFrameError, FrameTooLargeError and FrameLateError."""
    deadline_s = None if within_s is None else time.monotonic() + within_s
    flags, size = _HEAD.unpack(_read(fd, _HEAD.size, deadline_s))
    if size > max_bytes:
        raise FrameTooLargeError
    return _read(fd, size, deadline_s), flags


def _read(fd: int, size: int, deadline_s: float | None) -> bytearray:
    body = bytearray()
    while len(body) < size:
        _wait(fd, select.POLLIN, deadline_s)
        block = os.read(fd, min(size - len(body), BLOCK_BYTES))
        if not block:
            raise BrokenFrameError
        body += block
    return body


def _wait(fd: int, event: int, deadline_s: float | None) -> None:
    if deadline_s is None:
        return
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(max(deadline_s - time.monotonic(), 0) * 1000):
        raise FrameLateError


def serve(handle: Callable[[bytes], bytes], *, cpu_s: int) -> None:
    """Answer requests from standard input on standard output, until one is closed.

    cpu_s: processor time of each request, in seconds.
    """
    requests, answers = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # output of libraries must not mix with answers
    threading.Thread(target=_end_with_parent, args=(requests,), daemon=True).start()
    send(answers, b"")
    while True:
        try:
            request, _ = receive(requests, MAX_REQUEST_BYTES)
        except BrokenFrameError:
            return
        limit_cpu_from_now(cpu_s)
        answer = handle(bytes(request))
        is_last = _holds_much()
        try:
            send(answers, answer, flags=LAST_ANSWER if is_last else 0)
        except BrokenFrameError:
            return
        if is_last:
            return


def _end_with_parent(requests: int) -> None:
    """Wait until the writing end is closed, and exit. No event is registered, because POLLHUP is always reported."""
    poll = select.poll()
    poll.register(requests, 0)
    poll.poll()
    os._exit(0)


def _holds_much() -> bool:
    """Return whether the process holds more than RETIRE_SHARE of its memory limit."""
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    if limit == resource.RLIM_INFINITY:
        return False
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    return pages * resource.getpagesize() > RETIRE_SHARE * limit
