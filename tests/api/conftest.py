"""Databases for the service's tests: SQLite and PostgreSQL, both for real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from qtune_service.client import Client
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.jobs.store import JobStore
from tests.api.servers import scripted, serving, settings
from tests.postgres import running_server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """Yield a PostgreSQL server for the whole run."""
    with running_server() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> str:
    """Return the URL of the server's database, emptied."""
    engine = open_database(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/qtune.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """Yield the database with this version's schema."""
    engine = open_database(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(database: Engine) -> JobStore:
    """Return a store without jobs."""
    return JobStore(database)


@pytest.fixture
def no_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody's own servers and tokens."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("QTUNE_URL", "QTUNE_TOKEN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server_url(tmp_path: Path) -> Iterator[str]:
    """Yield the address of a server without models."""
    with serving(settings(tmp_path), scripted(tmp_path)) as made:
        yield str(made.base_url)


@pytest.fixture
def typed_client(server_url: str, no_config: None) -> Iterator[Client]:
    """Yield the package's client of the server."""
    with Client(server_url) as made:
        yield made
