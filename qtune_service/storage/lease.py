"""One driver an output, where there is no file lock: on an object store.

The owner keeps a small object there and rewrites it every few seconds. Who finds one watches it: if it changes, its
owner is alive and the newcomer is refused; if it stands still for long enough, its owner is gone and the lease is
taken over. Only the watcher's own clock is used. Two that start in the same moment both write; after a pause the last
writer finds its own name there, and the other one is refused. An owner that was cut off for so long that another
took over finds a foreign name at its next beat and ends. In between both may write for seconds, which does no harm,
since every file is written whole and has the same content.
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

BEAT_S, SETTLE_S = 5.0, 1.0
DEAD_S = 4 * BEAT_S
"""A lease that stands still for so long has lost its owner."""


MAX_BYTES = 4096
"""Of the lease object; whoever can write to the output can write another one."""


def end_process() -> None:
    """End this process as if it was asked to stop: what it has in hand is saved, and nothing more is written."""
    os.kill(os.getpid(), signal.SIGTERM)


@contextlib.contextmanager
def leased(
    uri: str, output: str, say: Callable[[str], None] = lambda _: None, on_lost: Callable[[], None] = end_process
) -> Iterator[None]:
    """Hold the lease object at `uri` for the block. Raises OutputConflictError where another driver holds it.

    on_lost: called in another thread where the lease was lost meanwhile; the block then ends with that error.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    _wait_for_the_dead(uri, output, say)
    _write(uri, owner, 0)
    time.sleep(SETTLE_S)
    if _owner(_read(uri)) != owner:
        raise _conflict(output, _owner(_read(uri)))
    done, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_beat, args=(uri, owner, done, lost, on_lost), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if lost.is_set():
            raise _conflict(output, _owner(_read(uri)))
        file_io.remove_file(uri)


def _wait_for_the_dead(uri: str, output: str, say: Callable[[str], None]) -> None:
    """Return once nobody holds the lease. Raises OutputConflictError if its owner shows that it is alive."""
    found = _read(uri)
    if not found or _is_dead_here(_owner(found)):
        return
    say(f"{_owner(found)} held {output} last; waiting up to {DEAD_S:.0f} s to see whether it is still at work")
    deadline_s = time.monotonic() + DEAD_S
    while time.monotonic() < deadline_s:
        time.sleep(1)
        now = _read(uri)
        if not now:
            return
        if now != found:
            raise _conflict(output, _owner(now))


def _is_dead_here(owner: str) -> bool:
    """Whether the owner was a process of this machine that has ended."""
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


def _beat(uri: str, owner: str, done: threading.Event, lost: threading.Event, on_lost: Callable[[], None]) -> None:
    """Renew the lease until it is done or lost."""
    count = 0
    while not done.wait(BEAT_S):
        count += 1
        with contextlib.suppress(StorageError):  # a short outage; the next beat shows whether the lease still holds
            if _owner(_read(uri)) not in (owner, ""):
                lost.set()
                on_lost()
                return
            _write(uri, owner, count)


def _write(uri: str, owner: str, count: int) -> None:
    file_io.write_bytes(uri, json.dumps({"owner": owner, "beat": count}).encode())


def _read(uri: str) -> str:
    """The lease as it stands; empty where there is none."""
    try:
        body = file_io.read_range(uri, 0, MAX_BYTES) if file_io.stat(uri) is not None else b""
        return body.decode(errors="replace")
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # removed in between
            return ""
        raise


def _owner(lease: str) -> str:
    """Who holds it: HOST:PID:TOKEN."""
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
