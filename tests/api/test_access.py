"""Who gets in: tokens, scopes, and addresses that others can reach."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, select
from typer.testing import CliRunner

from qtune_service.cli import app
from qtune_service.errors import NotFoundError, SettingsError, SpecError
from qtune_service.server.app import create_app
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import tokens
from qtune_service.server.settings import load_settings
from tests.api.servers import scripted, serving, settings


def test_a_token_lets_in_until_it_is_revoked(database: Engine) -> None:
    """It is stored as a digest, and its name is free again afterwards."""
    store = TokenStore(database)
    token, text = store.create("ci", Scope.submit)
    checked = store.check(text)
    assert checked is not None
    assert (checked.id, checked.scope) == (token.id, Scope.submit)
    assert store.get(token.id).last_used_at is not None
    with database.connect() as connection:
        (row,) = connection.execute(select(tokens)).all()
    assert text.rpartition("_")[2] not in str(row)
    store.revoke("ci")
    assert store.check(text) is None
    store.create("ci", Scope.read)
    with pytest.raises(SpecError, match="there is already a token named 'ci'"):
        store.create("ci", Scope.read)
    with pytest.raises(NotFoundError, match="no token named 'x'"):
        store.revoke("x")


def test_expired_and_wrong_tokens_do_not(database: Engine) -> None:
    """Nor parts, nor others' secrets."""
    store = TokenStore(database)
    _, expired = store.create("old", Scope.admin, datetime.now(UTC) - timedelta(seconds=1))
    _, good = store.create("good", Scope.admin)
    _, other = store.create("other", Scope.admin)
    mixed = "_".join([*good.split("_")[:2], other.split("_", 2)[2]])
    for text in (expired, mixed, good[:-1], good.replace("qtune", "other"), "", "qtune__", "qtune", "é" * 50):
        assert store.check(text) is None, text


def test_a_server_that_others_reach_needs_a_token(tmp_path: Path) -> None:
    """Or the owner's word that it is meant to be open."""
    with pytest.raises(SettingsError, match="other machines can reach"):
        create_app(settings(tmp_path, host="0.0.0.0"))
    create_app(settings(tmp_path, host="0.0.0.0", insecure=True))
    for host in ("127.0.0.1", "::1", "localhost"):
        assert settings(tmp_path, host=host).is_local


def test_scopes(tmp_path: Path) -> None:
    """Nothing without a token; reading with one; submitting only with its scope."""
    made = CliRunner().invoke(app, ["token", "create", "--name", "a", "--scope", "read", "--data-root", str(tmp_path)])
    reads = {"Authorization": f"Bearer {made.stdout.strip()}"}
    made = CliRunner().invoke(app, ["token", "create", "--name", "b", "--expires", "1d", "--data-root", str(tmp_path)])
    submits = {"Authorization": f"Bearer {made.stdout.strip()}"}
    body = {"input": {"paths": [f"{tmp_path}/inputs/a"]}, "model": {"name": "succeed"}}
    opened = settings(tmp_path, host="0.0.0.0")
    with serving(opened, scripted(tmp_path)) as client:
        anonymous = client.get("/api/v1/jobs")
        assert (anonymous.status_code, anonymous.json()["code"]) == (401, "not_signed_in")
        assert anonymous.headers["www-authenticate"] == "Bearer"
        assert client.get("/api/v1/jobs", headers={"Authorization": "Bearer qtune_x_y"}).status_code == 401
        assert client.get("/api/v1/jobs", headers=reads).status_code == 200
        assert refused(client, body, reads) == (403, "not_allowed")
        submitted = client.post("/api/v1/jobs", json=body, headers=submits)
        assert (submitted.status_code, submitted.json()["owner"]) == (201, "b")
        assert client.get("/healthz").status_code == 200


def refused(client: httpx.Client, body: object, headers: dict[str, str]) -> tuple[int, str]:
    """Status and code of a submission."""
    answer = client.post("/api/v1/jobs", json=body, headers=headers)
    return answer.status_code, answer.json()["code"]


def test_hostile_jobs_are_refused(tmp_path: Path) -> None:
    """By the field that asks for too much; nothing is queued."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        good = {"input": {"paths": [f"{tmp_path}/inputs/a"]}, "model": {"name": "succeed"}}
        for change in (
            {"input": {"paths": ["/etc/passwd"]}},
            {"model": {"name": "/etc"}},
            {"output": {"path": "/tmp/x"}},
        ):
            answer = client.post("/api/v1/jobs", json={**good, **change})
            assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed")
            assert next(iter(change)) in answer.json()["detail"]
        assert client.get("/api/v1/jobs").json()["jobs"] == []


def test_the_commands_of_tokens(tmp_path: Path) -> None:
    """Made, listed without secrets, revoked; wrong input is told."""
    root = ["--data-root", str(tmp_path)]

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(app, ["token", *arguments, *root])
        assert result.exit_code == code, result.output
        return result.output

    secret = run("create", "--name", "ci", "--scope", "admin", "--expires", "2099-01-31").splitlines()[0]
    listed = run("list")
    assert "ci" in listed
    assert "2099-01-31" in listed
    assert secret not in listed
    assert "revoked ci" in run("revoke", "ci")
    assert "not valid" in run("list")
    assert "--scope: 'root'" in run("create", "--name", "x", "--scope", "root", code=2)
    assert "--expires: 'soon'" in run("create", "--name", "x", "--expires", "soon", code=2)


def test_settings_are_checked_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each wrong variable; lists are separated as paths are, and may hold URIs."""
    monkeypatch.setenv("QTUNE_ALLOWED_INPUTS", f"{tmp_path}/a:s3://corpus/sft:{tmp_path}/b")
    monkeypatch.setenv("QTUNE_MAX_RUNNING_JOBS", "3")
    found = load_settings(data_root=tmp_path)
    assert found.allowed_inputs == (f"{tmp_path}/a", "s3://corpus/sft", f"{tmp_path}/b")
    assert (found.max_running_jobs, found.database) == (3, f"sqlite:///{tmp_path}/qtune.db")
    monkeypatch.setenv("QTUNE_PORT", "0")
    monkeypatch.setenv("QTUNE_ALLOWED_INPUTS", "relative")
    with pytest.raises(SettingsError, match="QTUNE_PORT"):
        load_settings()
    monkeypatch.delenv("QTUNE_PORT")
    with pytest.raises(SettingsError, match="neither an absolute path nor a URI"):
        load_settings()
