"""Conditional writes by the role of a pod, which has no keys in its environment."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from qtune_service.storage import aws_keys
from qtune_service.storage.aws_keys import Keys, find_keys
from qtune_service.storage.filesystems import presigned
from tests.s3 import S3Endpoint


@pytest.fixture
def no_keys(s3: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3Endpoint:
    """Return the endpoint, without keys in the environment, in files or in memory."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(aws_keys, "_kept", aws_keys._KeptKeys())
    aws_keys._botocore_credentials.cache_clear()
    return s3


def test_no_keys(no_keys: S3Endpoint) -> None:
    """Requests are not signed then."""
    assert find_keys("us-east-1") is None
    assert presigned(no_keys.uri("x"), seconds=60, method="PUT", may_use_role=True) is None


def test_a_web_identity(no_keys: S3Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its token is exchanged at STS, once, and the keys are those of a session."""
    (tmp_path / "token").write_text("of-the-cluster\n")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/qtune")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", no_keys.url)
    found = find_keys("us-east-1")
    assert found is not None
    assert found.key_id.startswith("ASIA")
    assert found.token
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:9")
    assert find_keys("us-east-1") == found
    url = presigned(no_keys.uri("x"), seconds=60, method="PUT", may_use_role=True)
    assert url is not None
    assert "X-Amz-Security-Token=" in url


class Agent:
    """The agent of a pod: it gives keys to a process that has the pod's token."""

    def __init__(self, expires_in: timedelta) -> None:
        self.requests = 0
        agent = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                agent.requests += 1
                is_known = self.headers["Authorization"] == "of-the-pod"
                until = (datetime.now(UTC) + expires_in).strftime("%Y-%m-%dT%H:%M:%SZ")
                keys = {"AccessKeyId": "ASIA1", "SecretAccessKey": "s", "Token": "t", "Expiration": until}
                body = json.dumps(keys).encode()
                self.send_response(200 if is_known else 403)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()


@pytest.fixture(params=[timedelta(hours=1), timedelta(minutes=1)], ids=["fresh", "expiring"])
def agent(request: pytest.FixtureRequest) -> Iterator[Agent]:
    """Run an agent whose keys are valid for an hour, or for less than the time of renewal."""
    found = Agent(request.param)
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.mark.usefixtures("no_keys")
def test_the_agent_of_a_pod(
    agent: Agent, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Keys come from its address, and are renewed before they expire."""
    (tmp_path / "token").write_text("of-the-pod")
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"http://127.0.0.1:{agent.server.server_address[1]}/keys")
    monkeypatch.setenv("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", str(tmp_path / "token"))
    for _ in range(2):
        found = find_keys("us-east-1")
        assert isinstance(found, Keys)
        assert (found.key_id, found.secret, found.token) == ("ASIA1", "s", "t")
    assert agent.requests == (1 if "fresh" in request.node.name else 2)
