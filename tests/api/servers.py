"""A server of one's own under uvicorn, and a client of it."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from qtune_service.server.app import create_app
from qtune_service.server.http_server import make_http_server
from qtune_service.server.launchers.base import Launcher
from qtune_service.server.launchers.local import LocalLauncher
from qtune_service.server.settings import Settings
from tests.waiting import free_port

REPO = Path(__file__).parents[2]
DRIVER = str(Path(__file__).parent / "driver.py")


@contextmanager
def serving(settings: Settings, launchers: Mapping[str, Launcher] | None = None, **more: Any) -> Iterator[httpx.Client]:
    """Run a server on a free port until the block ends. `more` goes to make_http_server."""
    app = create_app(settings, launchers)
    port = free_port()
    server = make_http_server(app, settings.model_copy(update={"port": port}), **more)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive(), "the server did not start"
        time.sleep(0.02)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server with scripted drivers in a process of its own, which can be killed."""
    code = "import sys; from tests.api import servers; servers.run(sys.argv[1], int(sys.argv[2]))"
    server = subprocess.Popen([sys.executable, "-c", code, str(folder), str(port)], cwd=REPO)
    try:
        while not _listens(port):
            assert server.poll() is None, "the server did not start"
            time.sleep(0.05)
        yield server
    finally:
        server.kill()
        server.wait()


def run(folder: str, port: int) -> None:
    """Serve until killed."""
    chosen = settings(Path(folder), port=port)
    make_http_server(create_app(chosen, scripted(Path(folder))), chosen).run()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def scripted(folder: Path) -> Mapping[str, Launcher]:
    """Drivers without a model; see driver.py."""
    return {"local": LocalLauncher(folder / "jobs", python=DRIVER)}


def settings(folder: Path, **changes: Any) -> Settings:
    """Return the settings of a server in a folder. The input folder and the scripted models are allowed."""
    (folder / "inputs").mkdir(exist_ok=True)
    acts = ("succeed", "slow 0.3", "slow 2", "fail", "vanish", "sleep", "stubborn")
    base = {"data_root": folder, "allowed_inputs": (str(folder / "inputs"),), "allowed_models": acts}
    return Settings(**{**base, **changes})
