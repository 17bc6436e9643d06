"""Locks of an output, for one driver at a time: a file lock on a local disk, and a lease on other storage.

The owner of a lease rewrites a small object every few seconds (its heartbeat). A second driver watches the object. If
it changes, its owner is alive and the second driver fails. If it stays unchanged for DEAD_S, its owner is gone and the
lease is taken over. Only the clock of the watcher is used.

Where the storage has conditional writes (conditional.py), every write names the version that it replaces. So of two
drivers one succeeds, however slow their requests are, and an owner that was disconnected for longer than DEAD_S learns
at its next heartbeat that the lease is another driver's. Other storage has a pause instead: of two drivers that start
at the same time, the last writer finds its own name after SETTLE_S, and the other one fails. There a write that takes
longer than the pause lets both run until the next heartbeat, which harms no output: shards have files of their own in
each attempt.

Filesystems that machines share have a lease too: `flock` is local to a machine on some of them, and fails on others.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from qtune_service.errors import OutputConflictError, SettingsError, StorageError
from qtune_service.storage import conditional, file_io
from qtune_service.storage.conditional import NoConditionError
from qtune_service.storage.filesystems import explain

HEARTBEAT_S, SETTLE_S = 5.0, 1.0
DEAD_S = 4 * HEARTBEAT_S
"""Time without a heartbeat after which the owner counts as gone."""
MAX_BYTES = 4096
"""Size limit of the lease object, which other writers of the output can replace."""


def end_process() -> None:
    """Send SIGTERM to this process: shards in progress are saved, and nothing more is written."""
    os.kill(os.getpid(), signal.SIGTERM)


LOCK_SETTING = "QTUNE_LOCK"
"""Environment variable: `flock` or `lease`, where `auto` (by the type of the filesystem) is wrong."""
MOUNTS = Path("/proc/self/mounts")
SHARED_FILESYSTEMS = frozenset(
    {
        *("nfs", "nfs4", "cifs", "smb3", "smbfs", "ncpfs", "lustre", "gpfs", "beegfs", "ceph", "orangefs", "pvfs2"),
        *("afs", "coda", "ocfs2", "gfs2", "glusterfs", "9p", "virtiofs", "wekafs", "panfs"),
    }
)
"""Types of filesystems that several machines can mount. So are those of FUSE (`fuse.gcsfuse`)."""


def needs_lease(path: Path) -> bool:
    """Return whether a local path is excluded by a lease, because a file lock may not reach other machines.

    Raise SettingsError for an unknown setting.
    """
    setting = os.environ.get(LOCK_SETTING) or "auto"
    if setting not in ("auto", "flock", "lease"):
        raise SettingsError(f"{LOCK_SETTING} is {setting!r}", "Set it to `auto`, `flock` or `lease`.")
    return setting == "lease" or (setting == "auto" and is_shared(filesystem_type(path)))


def is_shared(filesystem: str) -> bool:
    """Return whether several machines can mount a type of filesystem."""
    return filesystem in SHARED_FILESYSTEMS or filesystem.startswith("fuse.")


def filesystem_type(path: Path) -> str:
    """Return the type of the filesystem of a path, empty if unknown. The path need not exist."""
    try:
        lines = MOUNTS.read_text(errors="replace").splitlines()
    except OSError:  # not Linux
        return ""
    real, found = path.resolve(), ("", "")
    for line in lines:
        _device, escaped, kind, *_options = [*line.split(" "), "", "", ""]
        point = re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), escaped)
        if point and real.is_relative_to(point) and len(point) >= len(found[0]):  # later mounts hide earlier ones
            found = (point, kind)
    return found[1]


@contextlib.contextmanager
def locked(
    uri: str, lease_uri: str, output: str, say: Callable[[str], None], on_lost: Callable[[], None]
) -> Iterator[None]:
    """Exclude a second driver for the block. Raise OutputConflictError if there is one.

    uri: the file lock, or on an object store the lease. lease_uri: the lease on a filesystem that machines share, where
    the file lock is held too, if there is one: drivers of earlier versions know it alone.
    """
    location = file_io.resolve(uri)
    path = Path(location.path)
    with contextlib.ExitStack() as locks:
        if not location.is_local:
            locks.enter_context(leased(uri, output, say, on_lost))
        elif needs_lease(path):
            locks.enter_context(_file_lock(path, output, may_lack=True))
            locks.enter_context(leased(lease_uri, output, say, on_lost))
        else:
            locks.enter_context(_file_lock(path, output))
        yield


@contextlib.contextmanager
def _file_lock(path: Path, output: str, *, may_lack: bool = False) -> Iterator[None]:
    """Hold a file lock, which ends with the process in every case. may_lack: the filesystem may have none."""
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    # Links are not followed, and a FIFO at this path is an error instead of an endless wait.
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        raise explain(error, str(path), "lock") from error
    with open(descriptor, "a") as file:  # noqa: PTH123 - a descriptor
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputConflictError(
                f"another qtune process is writing to {output}",
                "Wait for it, stop it, or choose another --output.",
            ) from error
        except OSError as error:
            if not may_lack:
                raise explain(error, str(path), "lock") from error
        yield


@contextlib.contextmanager
def leased(
    uri: str, output: str, say: Callable[[str], None] = lambda _: None, on_lost: Callable[[], None] = end_process
) -> Iterator[None]:
    """Hold the lease object at `uri` for the block. Raises OutputConflictError if another driver holds it.

    on_lost: called in another thread if the lease is lost. The block then ends with that error.
    """
    lease = _Lease(uri, f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}")
    lease.acquire(output, say)
    done, lost = threading.Event(), threading.Event()
    thread = threading.Thread(target=_send_heartbeats, args=(lease, done, lost, on_lost), daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if lost.is_set():
            raise _conflict(output, _owner(_read(uri)))
        file_io.remove_file(uri)


@dataclass(slots=True)
class _Lease:
    """The lease object as its owner sees it."""

    uri: str
    owner: str
    count: int = 0
    version: str | None = None
    """Version that this owner wrote last. None: the storage has no conditions."""

    def acquire(self, output: str, say: Callable[[str], None]) -> None:
        """Take the lease. Raise OutputConflictError if another driver has it."""
        try:
            self._acquire_by_condition(output, say)
        except NoConditionError:
            self._acquire_by_pause(output, say)

    def _acquire_by_condition(self, output: str, say: Callable[[str], None]) -> None:
        """Take the lease by conditional writes. Raise NoConditionError where there are none."""
        before = conditional.read(self.uri)
        _wait_until_free(self.uri, output, say)
        now = conditional.read(self.uri)
        if now is not None and (before is None or before.body != now.body):
            raise _conflict(output, _owner(now.body))
        written = conditional.write_if(self.uri, self._body(), conditional.ABSENT if now is None else now.version)
        if written is None:
            raise _conflict(output, _owner(_read(self.uri)))
        if not conditional.are_kept(self.uri, self._body()):
            raise NoConditionError
        self.version = written

    def _acquire_by_pause(self, output: str, say: Callable[[str], None]) -> None:
        _wait_until_free(self.uri, output, say)
        if _read(self.uri):
            file_io.write_bytes(self.uri, self._body())
        elif not conditional.create(self.uri, self._body()):  # a local path has a condition for that alone
            raise _conflict(output, _owner(_read(self.uri)))
        time.sleep(SETTLE_S)
        if _owner(_read(self.uri)) != self.owner:
            raise _conflict(output, _owner(_read(self.uri)))

    def renew(self) -> bool:
        """Send a heartbeat. Return False if the lease is lost."""
        if self.version is not None:
            return self._renew_by_condition()
        if _owner(_read(self.uri)) not in (self.owner, ""):
            return False
        self.count += 1
        file_io.write_bytes(self.uri, self._body())
        return True

    def _renew_by_condition(self) -> bool:
        assert self.version is not None
        self.count += 1
        try:
            written = conditional.write_if(self.uri, self._body(), self.version)
            if written is None and not _read(self.uri):  # removed by hand
                written = conditional.write_if(self.uri, self._body(), conditional.ABSENT)
        except NoConditionError:  # such as expired credentials: the next heartbeat tries again
            return True
        self.version = written or self.version
        return written is not None

    def _body(self) -> bytes:
        return json.dumps({"owner": self.owner, "beat": self.count}).encode()


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


def _send_heartbeats(lease: _Lease, done: threading.Event, lost: threading.Event, on_lost: Callable[[], None]) -> None:
    """Send heartbeats until the block ends or the lease is lost."""
    while not done.wait(HEARTBEAT_S):
        with contextlib.suppress(StorageError):  # an outage: the next heartbeat checks the lease
            if not lease.renew():
                lost.set()
                on_lost()
                return


def _read(uri: str) -> bytes:
    """Return the content of the lease; empty if there is none."""
    try:
        return file_io.read_range(uri, 0, MAX_BYTES) if file_io.stat(uri) is not None else b""
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):  # removed meanwhile
            return b""
        raise


def _owner(lease: bytes) -> str:
    """Return the owner as HOST:PID:TOKEN."""
    try:
        return str(json.loads(lease.decode(errors="replace"))["owner"]) if lease else ""
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""


def _conflict(output: str, owner: str) -> OutputConflictError:
    host, _, rest = owner.partition(":")
    return OutputConflictError(
        f"another qtune process is writing to {output}: process {rest.partition(':')[0]} on {host}",
        "Wait for it, stop it, or choose another --output.",
    )
