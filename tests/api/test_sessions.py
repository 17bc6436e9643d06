"""Signing in with a browser, and what other sites' pages cannot do."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient
from sqlalchemy import Engine, select

from qtune_service.errors import SettingsError
from qtune_service.server.app import create_app
from qtune_service.server.auth import Sessions
from qtune_service.server.dependencies import PageReader, safe_redirect
from qtune_service.server.jobs.access import Scope, TokenStore
from qtune_service.server.jobs.database import open_database, reading, upgrade
from qtune_service.server.jobs.database import sessions as sessions_table
from qtune_service.server.jobs.database import tokens as tokens_table
from qtune_service.server.settings import load_settings
from tests.api.servers import scripted, serving, settings

SESSION = "/api/v1/session"


@dataclass(frozen=True, slots=True)
class Site:
    """A server that wants tokens, a browser that is not signed in, and a token."""

    browser: httpx.Client
    tokens: TokenStore
    token: str


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """One with a token of scope submit."""
    tokens = token_store(tmp_path)
    _, text = tokens.create("ann", Scope.submit)
    with serving(settings(tmp_path, require_tokens=True), scripted(tmp_path)) as client:
        yield Site(client, tokens, text)


def token_store(folder: Path) -> TokenStore:
    """Open the tokens of the server with this data root."""
    database = open_database(f"sqlite:///{folder}/qtune.db")
    upgrade(database)
    return TokenStore(database)


def job(folder: Path) -> dict[str, object]:
    """Return a job that is allowed."""
    return {"input": {"paths": [f"{folder}/inputs/a"]}, "model": {"name": "succeed"}}


def test_signing_in_and_out(site: Site, tmp_path: Path) -> None:
    """Nothing before; with the cookie reading, and with the CSRF token changing; nothing after."""
    before = site.browser.get(SESSION).json()
    nobody = {"name": None, "scope": None, "needs_token": True, "is_signed_in": False, "csrf_token": None}
    assert before == nobody
    assert site.browser.get("/api/v1/jobs").status_code == 401
    made = site.browser.post(SESSION, json={"token": site.token})
    assert (made.status_code, made.json()["name"], made.json()["scope"]) == (200, "ann", "submit")
    assert site.browser.get(SESSION).json() == made.json()
    assert site.browser.get("/api/v1/jobs").status_code == 200
    for wrong in ({}, {"X-CSRF-Token": "x"}, {"X-CSRF-Token": "é"}):
        refused = site.browser.post("/api/v1/jobs", json=job(tmp_path), headers=httpx.Headers(wrong, encoding="latin1"))
        assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
    right = {"X-CSRF-Token": made.json()["csrf_token"]}
    assert site.browser.post("/api/v1/jobs", json=job(tmp_path), headers=right).status_code == 201
    assert site.browser.delete(SESSION).status_code == 204
    assert site.browser.get(SESSION).json() == nobody


def test_the_cookie_is_kept_from_scripts_and_other_sites(site: Site) -> None:
    """HttpOnly, SameSite=Strict, expiring, without the token; Secure where a proxy says that it speaks https."""
    cookie = site.browser.post(SESSION, json={"token": site.token}).headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/", "Max-Age=43200"} <= set(cookie.split("; "))
    assert "Secure" not in cookie
    assert site.token.rpartition("_")[2] not in cookie
    secure = site.browser.post(SESSION, json={"token": site.token}, headers={"X-Forwarded-Proto": "https"})
    assert "Secure" in secure.headers["set-cookie"].split("; ")


def test_a_revoked_token_ends_its_sessions(site: Site) -> None:
    """With the next request, also on other servers: nothing is remembered."""
    site.browser.post(SESSION, json={"token": site.token})
    assert site.browser.get("/api/v1/jobs").status_code == 200
    site.tokens.revoke("ann")
    assert site.browser.get("/api/v1/jobs").status_code == 401
    again = site.browser.post(SESSION, json={"token": site.token})
    assert (again.status_code, again.json()["code"]) == (401, "not_signed_in")


def test_a_session_is_known_to_every_server_and_ends(database: Engine) -> None:
    """On one database, by the cookie alone; after its time, or its token's, it is nothing."""
    tokens = TokenStore(database)
    _, text = tokens.create("ann", Scope.read, datetime.now(UTC) + timedelta(seconds=2.5))
    signed_in = Sessions(tokens, 60).sign_in(text)
    assert signed_in is not None
    session, cookie = signed_in
    elsewhere = Sessions(TokenStore(database), 60)
    found = elsewhere.find(cookie)
    assert found is not None
    assert (found.token.id, found.csrf_token) == (session.token.id, session.csrf_token)
    time.sleep(2.6)
    assert elsewhere.find(cookie) is None, "the token has expired"
    _, text = tokens.create("bob", Scope.read)
    brief = Sessions(tokens, 0)
    old = brief.sign_in(text)
    assert old is not None
    time.sleep(1.1)
    assert brief.find(old[1]) is None, "the session has expired"


def test_forged_cookies_are_nothing(database: Engine) -> None:
    """What the database holds, other secrets, and what is no cookie at all."""
    tokens = TokenStore(database)
    sessions = Sessions(tokens, 60)
    made = [sessions.sign_in(tokens.create(name, Scope.admin)[1]) for name in ("ann", "bob")]
    cookies = [found[1] for found in made if found is not None]
    assert [sessions.find(cookie) is not None for cookie in cookies] == [True, True]
    with reading(database) as connection:
        rows = [row for table in (sessions_table, tokens_table) for row in connection.execute(select(table))]
    stored = [str(value) for row in rows for value in row]
    assert not set(cookies) & set(stored)
    forged = (*stored, cookies[0][:-1], cookies[0][:-1] + "=", cookies[0] + "x", cookies[0].swapcase(), "x" * 43)
    for cookie in (*forged, "", ".", "..", "\0", "é" * 43, "\ud800" * 43):
        assert sessions.find(cookie) is None, repr(cookie)


def test_other_sites_cannot_change_anything(tmp_path: Path) -> None:
    """A local server trusts its machine, but not the pages that are open in its browsers."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        own = str(client.base_url).rstrip("/")
        foreign: list[dict[str, str]] = [
            {"Origin": "https://evil.example"},
            {"Origin": "http://127.0.0.1:1"},
            {"Origin": "null"},
            {"Origin": "http://[::1"},
            {"Sec-Fetch-Site": "cross-site", "Origin": own},
            {"Sec-Fetch-Site": "same-site", "Origin": own},
        ]
        for headers in foreign:
            refused = client.post("/api/v1/jobs", json=job(tmp_path), headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (403, "foreign_origin"), headers
        assert client.get("/api/v1/jobs", headers=foreign[0]).json()["jobs"] == []
        for headers in ({}, {"Origin": own}, {"Sec-Fetch-Site": "same-origin", "Origin": own}):
            assert client.post("/api/v1/jobs", json=job(tmp_path), headers=headers).status_code == 201, headers


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "evil.example:8420", "", "[::1", "@", "0.0.0.0"]
)
def test_a_local_server_answers_to_its_own_names(tmp_path: Path, host: str) -> None:
    """Not to a foreign name that leads here (DNS rebinding), whatever is asked for."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        for path in ("/api/v1/jobs", "/healthz", "/"):
            refused = client.get(path, headers={"Host": host})
            assert (refused.status_code, refused.json()["code"]) == (403, "foreign_origin")
        for own in ("localhost", "localhost:1", "[::1]:8420", "127.0.0.1"):
            assert client.get("/healthz", headers={"Host": own}).status_code == 200


def test_who_is_local_needs_no_session(tmp_path: Path) -> None:
    """The page learns that it need not ask for a token."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        found = client.get(SESSION).json()
    assert found == {
        "name": "local", "scope": "admin", "needs_token": False, "is_signed_in": False, "csrf_token": None
    }  # fmt: skip


def test_pages_lead_to_the_sign_in(tmp_path: Path) -> None:
    """And from there back to where one was going, which is always a place of this server."""
    token_store(tmp_path).create("ann", Scope.read)
    app = create_app(settings(tmp_path, require_tokens=True), scripted(tmp_path))

    @app.get("/jobs/{job_id}")
    def page(job_id: str, who: PageReader) -> str:
        return who.name

    answer = TestClient(app).get("/jobs/1?a=b&c=%0d%0ad", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/sign-in?next=/jobs/1%3Fa%3Db%26c%3D%250d%250ad")


@pytest.mark.parametrize(
    "text", ["//evil.example", "https://evil.example", "", "x", "/\\evil.example", "/a\nb", "/\t/evil"]
)
def test_a_place_to_go_back_to_is_a_local_one(text: str) -> None:
    """Else it is the first page."""
    assert safe_redirect(text) == "/"
    assert safe_redirect("/jobs/1?a=b") == "/jobs/1?a=b"


def test_settings_that_contradict_each_other(tmp_path: Path) -> None:
    """Are refused by name."""
    with pytest.raises(SettingsError, match="insecure and require_tokens"):
        load_settings(data_root=tmp_path, insecure=True, require_tokens=True)
