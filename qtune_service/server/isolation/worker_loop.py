"""Messages on a pipe: one byte of flags, the length in eight bytes, and the body.

The parent does not trust its child: it reads with a deadline and a bound on the length.
"""

from __future__ import annotations

import os
import select
import struct
import time

_HEAD = struct.Struct("<BQ")
BLOCK_BYTES = 1 << 20


class BrokenFrameError(Exception):
    """The other side has closed the pipe in the middle of a message, or before one."""


class FrameTooLargeError(Exception):
    """A message is longer than the reader takes."""


class FrameLateError(Exception):
    """A message was not complete in time."""


def send(fd: int, body: bytes, *, flags: int = 0, within_s: float | None = None) -> None:
    """Write a message. within_s needs a descriptor that does not block. Raises BrokenFrameError and FrameLateError."""
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
    """Read a message: body and flags. Raises BrokenFrameError, FrameTooLargeError and FrameLateError."""
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
