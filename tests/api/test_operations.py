"""What owners and pages ask a server: its settings, its probes, its figures."""

from __future__ import annotations

from pathlib import Path

from tests.api.servers import scripted, serving, settings


def test_a_server_says_what_it_offers(tmp_path: Path) -> None:
    """What may be read, run and uploaded; nothing of its database or folders."""
    with serving(settings(tmp_path, max_running_jobs=3), scripted(tmp_path)) as client:
        found = client.get("/api/v1/server").json()
    assert found["allowed_inputs"] == [f"{tmp_path}/inputs"]
    assert (found["max_running_jobs"], found["needs_token"], found["allow_remote_code"]) == (3, False, False)
    assert found["default_launcher"] in found["launchers"]
    assert found["max_upload_bytes"] > 0
    assert "qtune.db" not in str(found)
