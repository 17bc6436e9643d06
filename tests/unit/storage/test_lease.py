"""Who may write to an output on an object store."""

from __future__ import annotations

import errno
import fcntl
import json
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qtune_service.errors import OutputConflictError, SettingsError, StorageError
from qtune_service.output.layout import Output
from qtune_service.storage import lease
from qtune_service.storage.lease import leased


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats of a tenth of a second."""
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    monkeypatch.setattr(lease, "SETTLE_S", 0.05)
    monkeypatch.setattr(lease, "DEAD_S", 2.5)


def foreign(path: Path, beat: int) -> None:
    """Write a heartbeat of a driver on another machine."""
    path.write_text(json.dumps({"owner": "elsewhere:17:abcd", "beat": beat}))


def test_it_is_there_while_held_and_gone_after(tmp_path: Path) -> None:
    """The lease names its owner, beats, and is removed at the end."""
    path = tmp_path / "lock"
    with leased(str(path), "s3://b/out"):
        first = json.loads(path.read_text())
        assert first["owner"].startswith(socket.gethostname())
        time.sleep(0.5)
        assert json.loads(path.read_text())["beat"] > first["beat"]
    assert not path.exists()


def test_a_living_owner_keeps_others_away(tmp_path: Path) -> None:
    """Where the lease changes while it is watched, the newcomer is refused and told who holds it."""
    path = tmp_path / "lock"
    foreign(path, 0)
    thread = threading.Timer(0.6, foreign, (path, 1))
    thread.start()
    with pytest.raises(OutputConflictError, match="process 17 on elsewhere"), leased(str(path), "s3://b/out"):
        pass
    thread.join()


def test_a_dead_owner_is_succeeded(tmp_path: Path) -> None:
    """A lease that stands still is taken over after a while, and the wait is told."""
    path = tmp_path / "lock"
    foreign(path, 5)
    told: list[str] = []
    with leased(str(path), "s3://b/out", told.append):
        assert "elsewhere" not in path.read_text()
    assert "waiting" in told[0]


def test_a_dead_process_of_this_machine_costs_no_wait(tmp_path: Path) -> None:
    """An owner that can be seen to be gone is succeeded at once."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    path = tmp_path / "lock"
    path.write_text(json.dumps({"owner": f"{socket.gethostname()}:{ended.pid}:abcd", "beat": 1}))
    began_s = time.monotonic()
    with leased(str(path), "s3://b/out"):
        assert time.monotonic() - began_s < 1


def test_who_lost_it_ends(tmp_path: Path) -> None:
    """An owner that finds a foreign name in its lease is told to stop, and ends with the conflict."""
    path = tmp_path / "lock"
    code = f"""
import signal, sys, time
from qtune_service.storage import lease
from qtune_service.pipeline.shutdown import Stop
lease.HEARTBEAT_S, lease.SETTLE_S = 0.1, 0.05
Stop().install()
with lease.leased({str(path)!r}, "out"):
    print("held", flush=True)
    time.sleep(30)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        foreign(path, 0)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=10)
    assert "OutputConflictError" in errors
    assert "elsewhere" in path.read_text()


def test_a_server_outlives_a_lost_lease(tmp_path: Path) -> None:
    """Whoever can write to an output can write a foreign lease: a server that holds it is told, and goes on."""
    path, told = tmp_path / "lock", threading.Event()

    def hold() -> None:
        with leased(str(path), "o", on_lost=told.set):
            deadline = time.monotonic() + 10
            while not told.wait(0.05):  # a beat that had already read the lease may write over it
                assert time.monotonic() < deadline
                foreign(path, 0)
            foreign(path, 0)

    with pytest.raises(OutputConflictError, match="process 17 on elsewhere"):
        hold()


@pytest.mark.parametrize(
    "body",
    [b"[]", b'"x"', b"\xff", b"{" * 5000, b'{"owner": 1}', b'{"owner": "HOST:99999999999999999999:x"}', b" " * 100_000],
)
def test_a_lease_that_none_wrote(tmp_path: Path, body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is taken over once it has stood still, whatever is in it."""
    monkeypatch.setattr(lease, "DEAD_S", 0.3)  # nobody renews it
    path = tmp_path / "lock"
    path.write_bytes(body.replace(b"HOST", socket.gethostname().encode()))
    with leased(str(path), "o"):
        assert json.loads(path.read_text())["owner"].startswith(socket.gethostname())


MOUNTS = """overlay / overlay rw 0 0
server:/home /mnt/home nfs4 rw,vers=4.2 0 0
10.0.0.1@tcp:/fs /mnt/lustre lustre rw 0 0
bucket /mnt/a\\040bucket fuse.gcsfuse rw 0 0
/dev/sda1 /mnt/home/scratch ext4 rw 0 0
"""


@pytest.mark.parametrize(
    ("path", "kind", "needs"),
    [
        ("/mnt/home/me/out/_qtune/lock", "nfs4", True),
        ("/mnt/homes/out/_qtune/lock", "overlay", False),
        ("/mnt/home/scratch/out/_qtune/lock", "ext4", False),
        ("/mnt/lustre/out/_qtune/lock", "lustre", True),
        ("/mnt/a bucket/out/_qtune/lock", "fuse.gcsfuse", True),
        ("/var/out", "overlay", False),
    ],
)
def test_shared_filesystems(path: str, kind: str, needs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filesystem of the longest mount point above a path decides, and a setting before it."""
    monkeypatch.setattr(lease, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(MOUNTS)
    assert lease.filesystem_type(Path(path)) == kind
    assert lease.needs_lease(Path(path)) is needs
    monkeypatch.setenv("QTUNE_LOCK", "lease")
    assert lease.needs_lease(Path(path))
    monkeypatch.setenv("QTUNE_LOCK", "flock")
    assert not lease.needs_lease(Path(path))
    monkeypatch.setenv("QTUNE_LOCK", "nfs")
    with pytest.raises(SettingsError, match="QTUNE_LOCK is 'nfs'"):
        lease.needs_lease(Path(path))


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Output:
    """Return an output on a filesystem that is mounted as NFS, by the table of mounts."""
    monkeypatch.setattr(lease, "MOUNTS", tmp_path / "mounts")
    (tmp_path / "mounts").write_text(f"overlay / overlay rw 0 0\nserver:/x {tmp_path}/nfs nfs4 rw 0 0\n")
    return Output(str(tmp_path / "nfs" / "out"))


def test_a_driver_of_another_machine_is_seen_on_a_shared_filesystem(shared: Output) -> None:
    """Its file lock may not reach this machine, and its lease does."""
    path = Path(shared.root) / "_qtune" / "lease"
    path.parent.mkdir(parents=True)
    foreign(path, 0)
    thread = threading.Timer(0.6, foreign, (path, 1))
    thread.start()
    with pytest.raises(OutputConflictError, match="process 17 on elsewhere"), shared.locked():
        pass
    thread.join()


def test_both_locks_are_held_on_a_shared_filesystem(shared: Output) -> None:
    """A second driver of this machine is refused immediately, and the lease is removed at the end."""
    path = Path(shared.root) / "_qtune" / "lease"
    with shared.locked():
        assert json.loads(path.read_text())["owner"].startswith(socket.gethostname())
        with pytest.raises(OutputConflictError, match="another qtune process"), shared.locked():
            pass
    assert not path.exists()


def test_a_shared_filesystem_without_file_locks(shared: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease alone excludes a second driver. A local disk without file locks is an error."""

    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with shared.locked(), pytest.raises(OutputConflictError, match="another qtune process"), shared.locked():
        pass
    monkeypatch.setenv("QTUNE_LOCK", "flock")
    with pytest.raises(StorageError, match="cannot lock"), shared.locked():
        pass
