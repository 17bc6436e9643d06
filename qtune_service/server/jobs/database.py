"""Define the tables of the service, open the database, and migrate its schema.

The database is SQLite by default and PostgreSQL by its URL. Both have the same tables. Times are microseconds since
1970 in UTC.
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

BUSY_S = 30
"""Seconds that a writer of SQLite waits for another one."""
TIMEOUTS = {"connect_timeout": 5, "keepalives_idle": 10, "keepalives_interval": 5, "tcp_user_timeout": 15_000}
"""Time after which a silent PostgreSQL server counts as gone, in seconds. `tcp_user_timeout` is in milliseconds."""
MIGRATIONS = Path(__file__).parent / "migrations"
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
    Index(None, "output", postgresql_using="hash"),  # a hash index has no limit on the length of a path
)

queue_lock = Table(
    "queue_lock",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("holder", String(100), nullable=False),
)
"""A table of one row. A transaction that updates it holds the queue until it ends, on every database."""

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
_URL_HINT = "Use sqlite:///PATH or postgresql://USER:PASSWORD@HOST/NAME."


def open_database(url: str) -> Engine:
    """Return an engine for `sqlite:///PATH` or `postgresql://...`. Raise SettingsError for other URLs."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise SettingsError("QTUNE_DATABASE_URL is not a database URL", _URL_HINT) from None
    if parsed.get_backend_name() == "sqlite":
        return _open_sqlite(url, parsed.database)
    if parsed.get_backend_name() == "postgresql":
        options = {**TIMEOUTS, **parsed.query}  # options in the URL have priority
        url_ = parsed.set(drivername="postgresql+psycopg", query={})
        return create_engine(url_, connect_args=options, pool_pre_ping=True, pool_size=10, max_overflow=20)
    raise SettingsError(f"QTUNE_DATABASE_URL names a {parsed.get_backend_name()} database", _URL_HINT)


def _open_sqlite(url: str, path: str | None) -> Engine:
    if path in (None, "", ":memory:"):
        raise SettingsError("QTUNE_DATABASE_URL names no file", "A database in memory loses all jobs. Give a path.")
    Path(str(path)).parent.mkdir(parents=True, exist_ok=True)
    _make_private(str(path))
    engine = create_engine(url, connect_args={"timeout": BUSY_S})

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # transactions begin in `_begin`, not in the driver
        for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", f"busy_timeout={BUSY_S * 1000}"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # A transaction that reads first and then writes can fail immediately. One that begins as a writer waits.
        is_reader = connection.get_execution_options().get("reads_only", False)
        connection.exec_driver_sql("BEGIN" if is_reader else "BEGIN IMMEDIATE")

    return engine


def _make_private(path: str) -> None:
    """Create the database's file with mode 600, whatever the umask. SQLite gives its log the same mode."""
    with contextlib.suppress(OSError):  # it exists, or cannot be created and SQLite reports why
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open a read-only transaction. Raise DatabaseError where the database does not answer."""
    with _translated(engine), engine.connect().execution_options(reads_only=True) as connection:
        yield connection


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open a transaction that writes, and roll it back where the block raises. Raise DatabaseError."""
    with _translated(engine), engine.begin() as connection:
        yield connection


@contextmanager
def _translated(engine: Engine) -> Iterator[None]:
    try:
        yield
    except IntegrityError:
        raise  # the caller handles it
    except (DBAPIError, PoolTimeoutError) as error:
        where = engine.url.render_as_string(hide_password=True)
        cause = error.orig if isinstance(error, DBAPIError) else error
        why = str(cause).strip().partition("\n")[0]
        hint = "Check that the database is running and that its disk is not full."
        raise DatabaseError(f"the database {where} failed: {why}", hint) from error


# --- schema


def upgrade(engine: Engine) -> None:
    """Migrate the schema to this version's. Several servers may call this at the same time."""
    if revision(engine) == head():
        return
    from alembic import command  # imported here because it takes memory and is used once
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with writing(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(716283)"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def prepare(engine: Engine, *, may_upgrade: bool) -> None:
    """Migrate the schema to this version's if may_upgrade, or else check it. Raise DatabaseError."""
    (upgrade if may_upgrade else check_schema)(engine)


def check_schema(engine: Engine) -> None:
    """Raise DatabaseError where the schema is not this version's."""
    if (found := revision(engine)) != head():
        raise DatabaseError(
            f"the database has schema {found or 'none'}, this version needs {head()}", "Run `qtune migrate`."
        )


def revision(engine: Engine) -> str | None:
    """Return the revision of the database's schema, or None where there is no schema."""
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()


def head() -> str:
    """Return the newest revision, by the file names of the migrations."""
    return max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]
