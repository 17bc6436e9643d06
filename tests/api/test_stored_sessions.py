"""Sessions are stored by digest: signing out ends them everywhere, and the database gives no cookie away."""

from __future__ import annotations

import hashlib
import hmac
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from sqlalchemy import Engine, select, update

from qtune_service.server.jobs.access import MAX_PER_TOKEN, Scope, SessionStore, Token, TokenStore
from qtune_service.server.jobs.database import open_database, reading, upgrade, writing
from qtune_service.server.jobs.database import sessions as sessions_table
from qtune_service.server.jobs.database import tokens as tokens_table
from qtune_service.server.jobs.store import now_us
from tests.api.servers import scripted, serving, settings

SESSION, COOKIE = "/api/v1/session", "qtune_session"


@dataclass(frozen=True, slots=True)
class Site:
    """A server that requires tokens, and the text of one."""

    client: httpx.Client
    token: str
    folder: Path

    def with_cookie(self, cookie: str) -> httpx.Response:
        """Ask for the jobs with a cookie alone, as somebody who copied it."""
        return httpx.get(f"{self.client.base_url}/api/v1/jobs", headers={"Cookie": f"{COOKIE}={cookie}"})


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Yield a server on SQLite with a token of scope admin."""
    database = open_database(f"sqlite:///{tmp_path}/qtune.db")
    upgrade(database)
    _, text = TokenStore(database).create("ann", Scope.admin)
    with serving(settings(tmp_path, require_tokens=True), scripted(tmp_path)) as client:
        yield Site(client, text, tmp_path)


def test_a_copied_cookie_ends_with_the_session(site: Site) -> None:
    """Signing out ends the session on the server, and only this one."""
    site.client.post(SESSION, json={"token": site.token})
    copied = site.client.cookies[COOKIE]
    site.client.cookies.clear()
    site.client.post(SESSION, json={"token": site.token})
    other = site.client.cookies[COOKIE]
    assert [site.with_cookie(one).status_code for one in (copied, other)] == [200, 200]
    signed_out = httpx.delete(f"{site.client.base_url}{SESSION}", headers={"Cookie": f"{COOKIE}={copied}"})
    assert signed_out.status_code == 204
    assert [site.with_cookie(one).status_code for one in (copied, other)] == [401, 200]


def test_a_reader_of_the_database_gets_no_session(site: Site) -> None:
    """Neither what is stored nor what can be computed from it is a cookie; nor is a CSRF token."""
    session = site.client.post(SESSION, json={"token": site.token}).json()
    with sqlite3.connect(site.folder / "qtune.db") as database:
        stored = [str(value) for table in ("sessions", "tokens") for row in database.execute(f"SELECT * FROM {table}")
                  for value in row]  # fmt: skip
    computed = [hmac.digest(text.encode(), b"qtune-csrf", hashlib.sha256).hex() for text in stored]
    assert session["csrf_token"] not in stored + computed
    for cookie in stored:
        assert site.with_cookie(cookie).status_code == 401, cookie


def test_what_is_no_cookie_is_no_session(site: Site) -> None:
    """Old signed cookies, empty and long ones: 401, and signing out with one does nothing."""
    for cookie in ("", "x" * 43, "x" * 4000, "01m81mn7t0fzx1sg1h406fwtnb.aQ.c2lnbmF0dXJl"):
        assert site.with_cookie(cookie).status_code == 401
        gone = httpx.delete(f"{site.client.base_url}{SESSION}", headers={"Cookie": f"{COOKIE}={cookie}"})
        assert gone.status_code == 204


@pytest.fixture
def token(database: Engine) -> Token:
    """Return a token in a database of each kind."""
    return TokenStore(database).create("ann", Scope.read)[0]


def num_sessions(database: Engine, token: Token) -> int:
    """Return how many sessions of a token are stored."""
    with reading(database) as connection:
        mine = select(sessions_table).where(sessions_table.c.token_id == token.id)
        return len(connection.execute(mine).all())


def test_a_token_has_a_limited_number_of_sessions(database: Engine, token: Token) -> None:
    """One more than the limit ends the oldest one; other tokens' sessions stay."""
    store = SessionStore(database)
    other = store.create(TokenStore(database).create("bob", Scope.read)[0], 60)
    secrets = [store.create(token, 60) for _ in range(MAX_PER_TOKEN + 2)]
    assert num_sessions(database, token) == MAX_PER_TOKEN
    assert [store.find(secret) is None for secret in secrets] == [True, True] + [False] * MAX_PER_TOKEN
    assert store.find(other) is not None


def test_sessions_end_and_are_swept(database: Engine, token: Token) -> None:
    """One that has expired is nothing, and the next sign-in removes its row."""
    store = SessionStore(database)
    old = store.create(token, 60)
    with writing(database) as connection:
        connection.execute(update(sessions_table).values(expires_at=now_us() - 1))
    assert store.find(old) is None
    found = store.find(store.create(token, 60))
    assert found is not None
    assert (num_sessions(database, token), found.id) == (1, token.id)


def test_a_revoked_or_expired_token_ends_its_sessions(database: Engine) -> None:
    """Also on another server, which has not seen the session before."""
    tokens, store = TokenStore(database), SessionStore(database)
    revoked, _ = tokens.create("ann", Scope.read)
    expiring, _ = tokens.create("bob", Scope.read, datetime.now(UTC) + timedelta(hours=1))
    secrets = [store.create(token, 60) for token in (revoked, expiring)]
    assert all(store.find(secret) for secret in secrets)
    tokens.revoke("ann")
    with reading(database) as connection:
        left = connection.execute(select(sessions_table.c.token_id)).scalars().all()
    assert left == [expiring.id]
    with writing(database) as connection:
        expired = update(tokens_table).where(tokens_table.c.id == expiring.id).values(expires_at=now_us() - 1)
        connection.execute(expired)
    assert [SessionStore(database).find(secret) for secret in secrets] == [None, None]


def test_the_migration_fills_the_models_names(tmp_path: Path) -> None:
    """Jobs of the version before get their models' names, and one that an old server inserts gets an empty one."""
    from alembic import command
    from alembic.config import Config

    from qtune_service.server.jobs.database import MIGRATIONS
    from qtune_service.server.jobs.store import JobStore

    engine = open_database(f"sqlite:///{tmp_path}/qtune.db")
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    row = (
        "INSERT INTO jobs (id, name, status, spec, output, owner, created_at, updated_at, version, stage, progress, "
        "counts, thresholds, launcher, reference, attempts, cancel_requested, request_digest) VALUES "
        "('{id}', 'a', 'failed', '{spec}', '/o', 'ann', 1, 1, 1, '', '{{}}', '{{}}', "
        "'{{}}', 'local', '{{}}', 1, 0, 'd')"
    )
    with writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        connection.exec_driver_sql(row.format(id="1", spec='{"model": {"name": "Qwen/x"}}'))
        connection.exec_driver_sql(row.format(id="2", spec="{}"))
    upgrade(engine)
    with writing(engine) as connection:
        connection.exec_driver_sql(row.format(id="3", spec='{"model": {"name": "m"}}'))
    assert {job.id: job.model for job in JobStore(engine).find().jobs} == {"1": "Qwen/x", "2": "", "3": ""}
