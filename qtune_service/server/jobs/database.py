"""The database of the service: SQLite by default, PostgreSQL by its URL. One place for how each is opened.

The service's tables, for SQLite and PostgreSQL alike. Times are microseconds since 1970, UTC; JSON is JSON.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    Engine,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    text,
)
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from qtune_service.errors import DatabaseError, SettingsError

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)


def _model_of(context: Any) -> str:
    """Return the model's name in the spec of a job that is inserted."""
    spec = context.get_current_parameters()["spec"]
    return str(spec.get("model", {}).get("name", ""))


jobs = Table(
    "jobs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("status", String(16), nullable=False),
    Column("spec", JSON, nullable=False),
    Column("output", Text, nullable=False),
    Column("owner", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("started_at", BigInteger),
    Column("finished_at", BigInteger),
    Column("version", Integer, nullable=False),
    Column("stage", String(32), nullable=False),
    Column("progress", JSON, nullable=False),
    Column("counts", JSON, nullable=False),
    Column("thresholds", JSON, nullable=False),
    Column("error", JSON),
    Column("launcher", String(16), nullable=False),
    Column("reference", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("cancel_requested", Boolean, nullable=False),
    Column("idempotency_key", String(200)),
    Column("request_digest", String(64), nullable=False),
    Column("model", Text, nullable=False, default=_model_of, server_default=""),
    UniqueConstraint("owner", "idempotency_key"),
    Index(None, "status", "id"),
    Index(None, "output", postgresql_using="hash"),  # whatever the length of a path
)

queue_lock = Table(
    "queue_lock",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("holder", String(100), nullable=False),
)
"""One row. Who updates it holds the queue until its transaction ends, whatever the database."""

tokens = Table(
    "tokens",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("digest", String(64), nullable=False, unique=True),
    Column("scope", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("last_used_at", BigInteger),
)

sessions = Table(
    "sessions",
    metadata,
    Column("digest", String(64), primary_key=True),
    Column("token_id", String(32), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
)

datasets = Table(
    "datasets",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("name", String(255), nullable=False),
    Column("owner", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("format", String(16), nullable=False),
    Column("rows", BigInteger),
    Column("num_bad_rows", BigInteger),
    Column("first_problem", Text, nullable=False),
)


BUSY_S = 30
"""How long a writer of SQLite waits for another one."""
PATIENCE = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 15_000}
"""After how long a PostgreSQL server that says nothing counts as gone, in s; the last in ms."""
MIGRATIONS = Path(__file__).parent / "migrations"


def open_database(url: str) -> Engine:
    """An engine for `sqlite:///PATH` or `postgresql://...`. Raises SettingsError for other URLs."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError("QTUNE_DATABASE_URL is not a database URL", _hint()) from None
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url, parsed.database)
    if parsed.get_backend_name() == "postgresql":
        options = {**PATIENCE, **parsed.query}  # the owner's URL comes first
        url_ = parsed.set(drivername="postgresql+psycopg", query={})
        return create_engine(url_, connect_args=options, pool_pre_ping=True, pool_size=10, max_overflow=20)
    raise SettingsError(f"QTUNE_DATABASE_URL names a {parsed.get_backend_name()} database", _hint())


def _hint() -> str:
    return "Use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME."


def _open_sqlite(url: str, path: str | None) -> Engine:
    if path in (None, "", ":memory:"):
        raise SettingsError("QTUNE_DATABASE_URL names no file", "A database in memory forgets every job; give a path.")
    Path(str(path)).parent.mkdir(parents=True, exist_ok=True)
    _make_private(str(path))
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say, see below
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_S * 1000}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A reader that turns writer half-way can fail at once; who is going to write says so first, and waits.
        is_reader = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    return engine


def _make_private(path: str) -> None:
    """Make the database's file for its user alone, whatever the umask; SQLite gives its log the same mode."""
    with contextlib.suppress(OSError):  # it exists, or cannot be made, which SQLite explains
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads. Raises DatabaseError where the database does not answer."""
    with _translated(engine), engine.connect().execution_options(reads_only=True) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes; it is rolled back where the block raises."""
    with _translated(engine), engine.begin() as connection:
        yield connection


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise  # the caller's to understand
    except (DBAPIError, PoolTimeoutError) as error:
        where = engine.url.render_as_string(hide_password=True)
        why = _first_line(error.orig if isinstance(error, DBAPIError) else error)
        raise DatabaseError(f"the database {where} failed: {why}", "Is it there, and is its disk full?") from error


def _first_line(error: BaseException | None) -> str:
    return str(error).strip().partition("\n")[0]


# --- schema


def upgrade(engine: Engine) -> None:
    """Bring the schema to this version's. Safe to call from several servers at once."""
    if revision(engine) == head():
        return
    from alembic import command  # costs memory, and is needed once
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(716283)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def prepare(engine: Engine, *, may_upgrade: bool) -> None:
    """Bring the schema to this version's, or check that it is. Raises DatabaseError."""
    (upgrade if may_upgrade else check_schema)(engine)


def check_schema(engine: Engine) -> None:
    """Raise DatabaseError where the schema is not this version's."""
    if (found := revision(engine)) != head():
        raise DatabaseError(
            f"the database has schema {found or 'none'}, this version needs {head()}", "Run `qtune migrate`."
        )


def revision(engine: Engine) -> str | None:
    """Of the database's schema; None where there is none."""
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def head() -> str:
    """The newest revision, by the names of the migrations."""
    return max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]
