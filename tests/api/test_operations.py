"""What owners and pages ask a server: its settings, its probes, its figures."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.responses import HTMLResponse
from fastapi.testclient import TestClient

from qtune_service.server.app import create_app
from qtune_service.server.middleware import MAX_BYTES
from tests.api.servers import scripted, serving, settings

PAGE = "default-src 'none'; script-src 'self'; style-src 'self'"


def test_a_server_says_what_it_offers(tmp_path: Path) -> None:
    """What may be read, run and uploaded; nothing of its database or folders."""
    with serving(settings(tmp_path, max_running_jobs=3), scripted(tmp_path)) as client:
        found = client.get("/api/v1/server").json()
    assert found["allowed_inputs"] == [f"{tmp_path}/inputs"]
    assert (found["max_running_jobs"], found["needs_token"], found["allow_remote_code"]) == (3, False, False)
    assert found["default_launcher"] in found["launchers"]
    assert found["max_upload_bytes"] > 0
    assert "qtune.db" not in str(found)


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """Yield a client of a server with a page and a route that fails."""
    app = create_app(settings(tmp_path), scripted(tmp_path))

    @app.get("/page")
    def page() -> HTMLResponse:
        return HTMLResponse("<!doctype html>")

    @app.get("/broken/{part}")
    def broken(part: str) -> None:
        raise RuntimeError(f"secret {part}")

    with TestClient(app, base_url="http://127.0.0.1") as made:
        yield made


@pytest.mark.parametrize(
    "path", ["/api/v1/jobs", "/api/v1/nowhere", "/nowhere", "/page", "/broken/x", "/api/v1/jobs/x"]
)
def test_every_answer_tells_browsers_what_they_may_do(client: TestClient, path: str) -> None:
    """No guessing of types, no frames, no referrer to others, no caching; whatever the status."""
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cross-origin-opener-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in headers["content-security-policy"]
    assert headers["content-security-policy"].startswith(PAGE) == (path == "/page")
    assert headers["cache-control"] == ("private, no-cache" if path == "/page" else "no-store")
    assert headers["x-request-id"]


def test_unknown_paths_and_methods_are_problems(client: TestClient) -> None:
    """As everything else that fails."""
    for method, path, status, code in (
        ("GET", "/api/v1/nowhere", 404, "not_found"),
        ("PUT", "/api/v1/jobs", 405, "method_not_allowed"),
        ("GET", "/broken/x", 500, "internal"),
    ):
        found = client.request(method, path)
        assert (found.status_code, found.json()["code"]) == (status, code)
        assert found.headers["content-type"] == "application/problem+json"
        assert "secret" not in found.text


def test_requests_have_numbers(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    """The client's own, where it is harmless; the log has a line without query and body, and what went wrong."""
    assert client.get("/healthz", headers={"X-Request-ID": "a-1"}).headers["x-request-id"] == "a-1"
    for bad in ("a b", "x" * 65, "a\tb", "é"):
        sent = [(b"X-Request-ID", bad.encode("latin1"))]
        assert len(client.get("/healthz", headers=sent).headers["x-request-id"]) == 26
    with caplog.at_level("INFO", "qtune_service"):
        found = client.get("/broken/%0aGET%20forged?where=private", headers={"Authorization": "Bearer qtune_x_private"})
    assert found.headers["x-request-id"] in found.json()["hint"]
    line = next(record.getMessage() for record in caplog.records if record.name == "qtune_service.access")
    assert "GET /broken/%0aGET%20forged 500" in line
    assert "private" not in caplog.text
    assert "RuntimeError" in caplog.text


def test_large_bodies_are_refused(client: TestClient) -> None:
    """Whether they say how large they are, or come in pieces; the limit itself is let through."""

    def pieces(number: int) -> Iterator[bytes]:
        yield from (b" " * 65536 for _ in range(number))

    url = "/api/v1/jobs"
    for body in (b" " * (MAX_BYTES + 1), pieces(17), pieces(1000)):
        refused = client.post(url, content=body, headers={"Content-Type": "application/json"})
        assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
        assert "POST /api/v1/datasets" in refused.json()["hint"]
    for body in (b" " * MAX_BYTES, pieces(16)):
        assert client.post(url, content=body, headers={"Content-Type": "application/json"}).status_code == 422
