"""A PostgreSQL server of its own for a test run, from the system's packages."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDERS = (Path("/usr/lib/postgresql"), Path("/usr/local/pgsql"))


def _programs() -> Path:
    found = sorted(path.parent for folder in FOLDERS for path in folder.glob("**/bin/initdb"))
    if not found:
        on_path = shutil.which("initdb")
        if on_path is None:
            pytest.skip("needs a PostgreSQL server (Debian: apt-get install postgresql)")
        return Path(on_path).parent
    return found[-1]


@contextmanager
def running_server() -> Iterator[str]:
    """Start one, give its URL, stop it. It listens on 127.0.0.1 alone, and refuses to run as root."""
    programs, folder = _programs(), Path(tempfile.mkdtemp(prefix="qtune-pg-"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user)
    as_user = [] if user is None else ["setpriv", f"--reuid={user}", "--clear-groups", "--"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def run(program: str, *arguments: str) -> None:
        command = [*as_user, str(programs / program), *arguments]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run("initdb", "-D", "data", "-U", "qtune", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C")
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", options, "start")
    try:
        yield f"postgresql://qtune@127.0.0.1:{port}/postgres"
    finally:
        run("pg_ctl", "-D", "data", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    """Whom to run it as: PostgreSQL does not run as root."""
    if os.getuid() != 0:
        return None
    names = [entry.pw_name for entry in pwd.getpwall()]
    return next(name for name in ("postgres", "nobody") if name in names)
