"""A server of one's own under uvicorn, and a client of it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from qtune_service.jobs.launch import Launcher
from qtune_service.jobs.local import LocalLauncher
from qtune_service.settings import Settings
from qtune_service.web.app import create_app

DRIVER = str(Path(__file__).parent / "driver.py")


@contextmanager
def serving(settings: Settings, launchers: Mapping[str, Launcher] | None = None) -> Iterator[httpx.Client]:
    """Run a server on a free port until the block ends."""
    app = create_app(settings, launchers)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, log_level="warning"))
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


def scripted(folder: Path) -> Mapping[str, Launcher]:
    """Drivers without a model; see driver.py."""
    return {"local": LocalLauncher(folder / "jobs", python=DRIVER)}


def settings(folder: Path, **changes: Any) -> Settings:
    """A server's, in a folder; the input folder and the scripted models are allowed."""
    (folder / "inputs").mkdir(exist_ok=True)
    acts = ("succeed", "slow 0.3", "slow 2", "fail", "vanish", "sleep", "stubborn")
    base = {"data_root": folder, "allowed_inputs": (str(folder / "inputs"),), "allowed_models": acts}
    return Settings(**{**base, **changes})
