"""Permissions of the server's files, by real commands under the umask that most machines have."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.api.servers import REPO
from tests.jobs import QTUNE, environment
from tests.scripted_jobs import wait_for_job
from tests.waiting import free_port, wait_until_ready

UMASK = 0o022
TOKEN = ("token", "create", "--name", "a", "--scope", "admin")


def run(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run `qtune` under a umask that lets others read."""
    return subprocess.run(
        [*QTUNE, *words], env=environment() | env, umask=UMASK, capture_output=True, text=True, check=False
    )


@contextmanager
def served(root: Path, **env: str) -> Iterator[httpx.Client]:
    """Run `qtune serve` under a umask that lets others read, with scripted drivers."""
    port = free_port()
    server = subprocess.Popen(
        [*QTUNE, "serve", "--port", str(port), "--data-root", str(root)],
        env=environment() | env, umask=UMASK, cwd=REPO, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until_ready(client, path="/readyz", process=server)
            yield client
    finally:
        server.terminate()
        server.communicate(timeout=30)


def exposed(root: Path) -> dict[str, str]:
    """Return the mode of each file and folder that group or others may access."""
    found = {}
    for path in [root, *root.rglob("*")]:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            found[str(path.relative_to(root))] = f"{mode:o}"
    return found


@pytest.mark.parametrize("words", [TOKEN, ("migrate",), ("jobs", "import")], ids=lambda words: "-".join(words[:2]))
def test_commands_make_private_files(tmp_path: Path, words: tuple[str, ...]) -> None:
    """Each command that opens the database makes it, and the data root, for its user alone."""
    root = tmp_path / "root"
    (tmp_path / "outputs").mkdir()
    done = run(*words, QTUNE_DATA_ROOT=str(root), QTUNE_OUTPUTS_ROOT=str(tmp_path / "outputs"))
    assert done.returncode == 0, done.stderr
    assert (root / "qtune.db").is_file()
    assert exposed(root) == {}


def test_a_server_makes_private_files_and_drivers_do_not(tmp_path: Path) -> None:
    """Database, log, spec and upload are the server's alone; an output elsewhere has the administrator's umask."""
    root, outputs = tmp_path / "root", tmp_path / "outputs"
    outputs.mkdir()
    with served(root, QTUNE_ALLOWED_MODELS=f"{tmp_path}/", QTUNE_OUTPUTS_ROOT=str(outputs)) as client:
        upload = client.post("/api/v1/datasets?name=a.jsonl", content=b'{"text": "a"}\n' * 30).json()
        body = {"input": {"paths": [upload["uri"]]}, "model": {"name": f"{tmp_path}/none"}}
        made = client.post("/api/v1/jobs", json=body)
        assert made.status_code == 201, made.text
        job = made.json()["id"]
        wait_for_job(client, job, "succeeded", "failed", "cancelled", seconds=60)
        names = {path.name for path in root.rglob("*")}
        assert {"qtune.db", "qtune.db-wal", f"{job}.log", f"{job}.json", "a.jsonl"} <= names
        driver_files = {f"jobs/{job}-1.pid": "644"}  # written by the driver, in a folder that is closed
        assert exposed(root) == driver_files
        assert exposed(outputs), "the driver's files are as the umask of the server's start says"


def test_what_is_there_from_before_is_tightened(tmp_path: Path) -> None:
    """A data root, a database outside of it, and logs, as earlier versions made them."""
    root, elsewhere = tmp_path / "root", tmp_path / "other" / "x.db"
    (root / "jobs").mkdir(parents=True)
    elsewhere.parent.mkdir()
    for path in (root / "jobs" / "1.log", elsewhere):
        path.touch(0o644)
    root.chmod(0o775)
    done = run(*TOKEN, QTUNE_DATA_ROOT=str(root), QTUNE_DATABASE_URL=f"sqlite:///{elsewhere}")
    assert (done.returncode, done.stderr) == (0, "Keep it: it is not shown again.\n")
    assert exposed(root) == {}
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o600


def test_a_folder_shared_by_everybody_is_refused(tmp_path: Path) -> None:
    """As /tmp is, which is left as it is; a setting for volumes of containers starts all the same, with a warning."""
    (tmp_path / "other").touch()
    tmp_path.chmod(0o1777)
    refused = run(*TOKEN, QTUNE_DATA_ROOT=str(tmp_path))
    assert refused.returncode == 2, refused.stderr
    assert f"every user of this machine may write to {tmp_path}" in refused.stderr.replace("\n", " ")
    assert not (tmp_path / "qtune.db").exists()
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o1777
    done = run(*TOKEN, QTUNE_DATA_ROOT=str(tmp_path), QTUNE_SHARED_DATA_ROOT="true")
    assert done.returncode == 0, done.stderr
    assert "other users may access" in done.stderr
    assert stat.S_IMODE((tmp_path / "qtune.db").stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="needs root to be another user")
@pytest.mark.parametrize(("mode", "is_refused"), [(0o2775, False), (0o777, True)])
def test_a_volume_that_is_not_ours(tmp_path: Path, mode: int, is_refused: bool) -> None:
    """As Kubernetes mounts them: root's, writable by our group (fsGroup), which is warned about; or by everybody."""
    root = tmp_path / "volume"
    root.mkdir()
    os.chown(root, 0, 10001)
    root.chmod(mode)
    code = (
        "import logging, os, sys; from pathlib import Path\n"
        "from qtune_service.server.permissions import keep_private\n"
        "os.setgroups([]); os.setgid(10001); os.setuid(10001)\n"
        "logging.basicConfig(); keep_private(Path(sys.argv[1]), f'sqlite:///{sys.argv[1]}/qtune.db')\n"
        "open(f'{sys.argv[1]}/qtune.db', 'w')\n"
    )
    for parent in (tmp_path, *tmp_path.parents):
        if parent == Path(tempfile.gettempdir()):
            break
        parent.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], cwd=REPO, capture_output=True, text=True, check=False
    )
    if is_refused:
        assert "QTUNE_SHARED_DATA_ROOT" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    assert f"other users may access {root} (mode 75)" in done.stderr
    assert stat.S_IMODE((root / "qtune.db").stat().st_mode) == 0o600
