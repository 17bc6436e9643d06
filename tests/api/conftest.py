"""Databases for the service's tests: SQLite and PostgreSQL, both for real."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from qtune_service.jobs.database import open_database, upgrade
from qtune_service.jobs.store import JobStore
from tests.postgres import running_server


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server for the whole run."""
    with running_server() as url:
        yield url


@pytest.fixture
def postgres_database(postgres_url: str) -> str:
    """The same, emptied."""
    engine = open_database(postgres_url)
    with engine.begin() as connection:
        connection.execute(text("DROP SCHEMA public CASCADE"))
        connection.execute(text("CREATE SCHEMA public"))
    engine.dispose()
    return postgres_url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/qtune.db"
    url: str = request.getfixturevalue("postgres_database")
    return url


@pytest.fixture
def database(database_url: str) -> Iterator[Engine]:
    """The same, with this version's schema."""
    engine = open_database(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()


@pytest.fixture
def store(database: Engine) -> JobStore:
    """A store without jobs."""
    return JobStore(database)
