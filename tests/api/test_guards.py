"""What holds for all routes, and what servers never give away."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient

from qtune_service.errors import DatabaseError, QTuneError
from qtune_service.job_states import JobStatus
from qtune_service.server.app import create_app
from qtune_service.server.jobs.access import Scope
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.routes.output_files import attachment
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.api.test_sessions import token_store
from tests.finished_outputs import FinishedOutputs

OPEN = {"healthz", "readyz", "sign_in", "get_session", "sign_out"}
"""Names of the routes that are for everybody; and pages send to the sign-in, which is one, with its scripts."""
OPEN_PATHS = ("/sign-in", "/static/")
SAFE = {"GET", "HEAD"}


def requests(app: object, *, changing: bool) -> Iterator[tuple[str, str]]:
    """Yield method and path of all routes that require a token."""
    for route in getattr(app, "routes"):  # noqa: B009 - of FastAPI's any kind
        if isinstance(route, APIRoute) and route.name not in OPEN and not route.path.startswith(OPEN_PATHS):
            for method in sorted(route.methods):
                if not changing or method not in SAFE:
                    yield method, re.sub(r"\{[^}]*\}", "x", route.path)


def test_every_route_wants_a_token(tmp_path: Path) -> None:
    """But probes, and the session; a page leads to the sign-in."""
    token_store(tmp_path).create("ann", Scope.read)
    app = create_app(settings(tmp_path, require_tokens=True), scripted(tmp_path))
    client = TestClient(app, follow_redirects=False)
    asked = list(requests(app, changing=False))
    assert {("GET", "/metrics"), ("POST", "/api/v1/jobs"), ("GET", "/api/v1/jobs/x/files/x")} <= set(asked)
    for method, path in asked:
        answer = client.request(method, path)
        is_sent_away = answer.status_code == 303 and answer.headers["location"].startswith("/sign-in?next=")
        assert answer.status_code == 401 or is_sent_away, (method, path)


def test_every_change_wants_more_than_reading(tmp_path: Path) -> None:
    """A token of scope read changes nothing."""
    _, text = token_store(tmp_path).create("ann", Scope.read)
    app = create_app(settings(tmp_path, require_tokens=True), scripted(tmp_path))
    client = TestClient(app, headers={"Authorization": f"Bearer {text}"})
    asked = list(requests(app, changing=True))
    assert ("DELETE", "/api/v1/jobs/x") in asked
    for method, path in asked:
        answer = client.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "not_allowed"), (method, path)


def test_secrets_stay_out_of_answers_and_logs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Tokens, cookies, credentials in URIs: of requests that are let in, and of those that are not."""
    tokens = token_store(tmp_path)
    _, good = tokens.create("ann", Scope.submit)
    _, bad = tokens.create("bob", Scope.submit)
    tokens.revoke("bob")
    uri = "s3://AKIAKEY:keysecret@bucket/x?session_token=optionsecret"
    job = {"input": {"paths": [uri]}, "model": {"name": "succeed"}}
    with (
        caplog.at_level("DEBUG", "qtune_service"),
        serving(settings(tmp_path, require_tokens=True), scripted(tmp_path)) as client,
    ):
        answers = [client.post("/api/v1/session", json={"token": text}) for text in (good, bad)]
        cookie = client.cookies["qtune_session"]
        answers += [
            client.get("/api/v1/jobs", headers={"Authorization": f"Bearer {text}"}, params={"q": "querysecret"})
            for text in (good, bad)
        ]
        answers.append(client.post("/api/v1/jobs", json=job, headers={"Authorization": f"Bearer {good}"}))
        answers.append(client.get(f"/api/v1/jobs/{'x' * 8}", headers={"X-Request-ID": "a\tb"}))
    assert [answer.status_code for answer in answers] == [200, 401, 200, 401, 403, 404]
    said = caplog.text + "".join(answer.text for answer in answers)
    assert "/api/v1/jobs" in caplog.text
    for secret in (good, bad, good.rpartition("_")[2], cookie, "keysecret", "AKIAKEY", "optionsecret", "querysecret"):
        assert secret not in said, secret


def test_a_database_that_is_away_keeps_its_password() -> None:
    """The error says where it is, and not how one gets in."""
    with pytest.raises(DatabaseError) as caught:
        upgrade(open_database("postgresql://qtune:hunter2@127.0.0.1:1/x"))
    told: list[BaseException | None] = [caught.value, caught.value.__cause__]
    assert "127.0.0.1" in str(told[0])
    assert not any("hunter2" in f"{error!r}{error}" for error in told)


@pytest.fixture
def tampered(tmp_path: Path, outputs: FinishedOutputs) -> Iterator[tuple[httpx.Client, Path]]:
    """Yield a client of a finished job, and the job's output, which the test changes."""
    out = tmp_path / "outputs" / "1"
    shutil.copytree(outputs.pruned.root, out)
    (tmp_path / "secret.txt").write_text("hunter2")
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        job = store_job(database_of(tmp_path), str(out), JobStatus.succeeded)
        client.base_url = httpx.URL(f"{client.base_url}/api/v1/jobs/{job}/")
        yield client, out


@pytest.mark.parametrize(
    "path", ["../../secret.txt", "/etc/passwd", "pruned/../../../secret.txt", "a\\b", "a\nb", "a//b"]
)
def test_an_archive_has_no_path_out_of_it(tampered: tuple[httpx.Client, Path], path: str) -> None:
    """A manifest that names other files is refused as a whole: nothing is listed, packed or given away."""
    client, out = tampered
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["files"].append({"path": path, "rows": 1, "bytes": 7, "sha256": "0" * 64})
    (out / "manifest.json").write_text(json.dumps(manifest))
    for asked in ("files", "archive?scores=true", f"files/{quote(path, safe='')}"):
        answer = client.get(asked)
        assert answer.status_code in (404, 409), asked
        assert "hunter2" not in answer.text


def test_a_link_out_of_an_output_is_not_followed(tampered: tuple[httpx.Client, Path]) -> None:
    """Neither as a file nor in the archive."""
    client, out = tampered
    for name in ("report.html", "tokenizer/tokenizer.json"):
        (out / name).unlink()
        (out / name).symlink_to(out.parent.parent / "secret.txt")
        for asked in (f"files/{name}", "archive"):
            answer = client.get(asked)
            assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict")
            assert "hunter2" not in answer.text


@pytest.mark.parametrize("name", ['a".html; x="', "a\r\nX-Injected: yes", "ä.parquet", "../a", "a;b", "\ud7ff"])
def test_a_name_of_a_download_stays_a_name(name: str) -> None:
    """One header, one parameter, plain text; the whole name is there, encoded."""
    header = attachment(name)
    assert re.fullmatch(r'attachment; filename="[A-Za-z0-9._-]*"; filename\*=UTF-8\'\'[A-Za-z0-9._~%-]*', header)
    assert attachment("part-00000.parquet") == 'attachment; filename="part-00000.parquet"'


def test_errors_have_codes_of_their_own() -> None:
    """Programs go by them; no two kinds share one."""
    kinds = [kind for kind in QTuneError.__subclasses__() if kind.__module__.startswith("qtune_service")]
    codes = [kind("").code for kind in kinds]
    assert len(set(codes)) == len(codes) > 10
