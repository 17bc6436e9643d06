"""Point the hub's client library in this process at a test hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hub_server import Hub


def use_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch, folder: Path, token: str = "") -> Hub:
    """Return the hub, without earlier requests and faults. folder: home of the library's files."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    for name, value in hub.env(folder, *filter(None, [token])).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(folder / "token"))
    hub.requests.clear()
    hub.faults.clear()
    return hub
