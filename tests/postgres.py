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
from dataclasses import dataclass
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


@dataclass(frozen=True, slots=True)
class Postgres:
    """A server that can be stopped for a while."""

    programs: Path
    folder: Path
    port: int
    as_user: tuple[str, ...]

    @property
    def url(self) -> str:
        """Return the URL of its database."""
        return f"postgresql://qtune@127.0.0.1:{self.port}/postgres"

    def start(self) -> None:
        """Start the server and wait until it answers."""
        sockets = f"-c listen_addresses=127.0.0.1 -c unix_socket_directories={self.folder}"
        self.run("pg_ctl", "-D", "data", "-w", "-l", "log", "-o", f"-p {self.port} {sockets} -c fsync=off", "start")

    def stop(self) -> None:
        """Stop the server as a crash does: connections break."""
        self.run("pg_ctl", "-D", "data", "-w", "-m", "immediate", "stop")

    def run(self, program: str, *arguments: str) -> None:
        """One of its programs."""
        command = [*self.as_user, str(self.programs / program), *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@contextmanager
def running_server() -> Iterator[str]:
    """Start one, give its URL, stop it."""
    with stoppable_server() as server:
        yield server.url


@contextmanager
def stoppable_server() -> Iterator[Postgres]:
    """Run a server that can be stopped. It listens on 127.0.0.1 alone, and refuses to run as root."""
    programs, folder = _programs(), Path(tempfile.mkdtemp(prefix="qtune-pg-"))
    user = _unprivileged()
    if user is not None:
        shutil.chown(folder, user)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    as_user = () if user is None else ("setpriv", f"--reuid={user}", "--clear-groups", "--")
    server = Postgres(programs, folder, port, as_user)
    server.run("initdb", "-D", "data", "-U", "qtune", "-A", "trust", "--no-sync", "--encoding=UTF8", "--locale=C")
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _unprivileged() -> str | None:
    """Return the user to run PostgreSQL as: it does not run as root."""
    if os.getuid() != 0:
        return None
    names = [entry.pw_name for entry in pwd.getpwall()]
    return next(name for name in ("postgres", "nobody") if name in names)
