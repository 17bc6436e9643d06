"""Lease of an output on an object store, which has no file locks: one driver at a time.

The owner rewrites a small object every few seconds (its heartbeat). A second driver watches the object. If it changes,
its owner is alive and the second driver fails. If it stays unchanged for DEAD_S, its owner is gone and the lease is
taken over. Only the clock of the watcher is used. Of two drivers that start at the same time, the last writer finds its
own name after a pause, and the other one fails. An owner that was disconnected for longer finds a foreign name at its
next heartbeat and ends. Until then both may write for seconds, which is harmless, because every write is atomic and has
the same content.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from qtune_service.errors import OutputConflictError, StorageError
from qtune_service.storage import file_io

HEARTBEAT_S, SETTLE_S = 5.0, 1.0
DEAD_S = 4 * HEARTBEAT_S
"""Time without a heartbeat after which the owner counts as gone."""
MAX_BYTES = 4096
"""Size limit of the lease object, which other writers of the output can replace."""


def end_process() -> None:
    """Send SIGTERM to this process: shards in progress are saved, and nothing more is written."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def leased(
    uri: str, output: str, say: Callable[[str], None] = lambda _: None, on_lost: Callable[[], None] = end_process
) -> Iterator[None]:
    """Hold the lease object at `uri` for the block. Raises OutputConflictError if another driver holds it.

    on_lost: called in another thread if the lease is lost. The block then ends with that error.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    _wait_until_free(uri, output, say)
    _write(uri, owner, 0)
    time.sleep(SETTLE_S)
    if _owner(_read(uri)) != owner:
        raise _conflict(output, _owner(_read(uri)))
    done, lost = threading.Event(), threading.Event()
    thread = threading.Thread(
        target=_send_heartbeats, args=(uri, owner, done, lost, on_lost), daemon=True, name="lease"
    )
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if lost.is_set():
            raise _conflict(output, _owner(_read(uri)))
        file_io.remove_file(uri)


def _wait_until_free(uri: str, output: str, say: Callable[[str], None]) -> None:
    """Return once the lease is free. Raises OutputConflictError if its owner is alive."""
    found = _read(uri)
    if not found or _is_ended_local_process(_owner(found)):
        return
    say(f"{_owner(found)} held {output} last; waiting up to {DEAD_S:.0f} s to see whether it is still running")
    deadline_s = time.monotonic() + DEAD_S
    while time.monotonic() < deadline_s:
        time.sleep(1)
        now = _read(uri)
        if not now:
            return
        if now != found:
            raise _conflict(output, _owner(now))


def _is_ended_local_process(owner: str) -> bool:
    """Return whether the owner was a process of this machine that has ended."""
    host, _, rest = owner.partition(":")
    pid = rest.partition(":")[0]
    if host != socket.gethostname() or not (pid.isdecimal() and len(pid) <= 10):
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (PermissionError, OverflowError):
        return False
    return False


def _send_heartbeats(
    uri: str, owner: str, done: threading.Event, lost: threading.Event, on_lost: Callable[[], None]
) -> None:
    """Send heartbeats until the block ends or the lease is lost."""
    count = 0
    while not done.wait(HEARTBEAT_S):
        count += 1
        with contextlib.suppress(StorageError):  # an outage: the next heartbeat checks the lease
            if _owner(_read(uri)) not in (owner, ""):
                lost.set()
                on_lost()
                return
            _write(uri, owner, count)


def _write(uri: str, owner: str, count: int) -> None:
    file_io.write_bytes(uri, json.dumps({"owner": owner, "beat": count}).encode())


def _read(uri: str) -> str:
    """Return the content of the lease; empty if there is none."""
    try:
        body = file_io.read_range(uri, 0, MAX_BYTES) if file_io.stat(uri) is not None else b""
        return body.decode(errors="replace")
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # removed meanwhile
            return ""
        raise


def _owner(lease: str) -> str:
    """Return the owner as HOST:PID:TOKEN."""
    try:
        return str(json.loads(lease)["owner"]) if lease else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _conflict(output: str, owner: str) -> OutputConflictError:
    host, _, rest = owner.partition(":")
    return OutputConflictError(
        f"another qtune process is writing to {output}: process {rest.partition(':')[0]} on {host}",
        "Wait for it, stop it, or choose another --output.",
    )
