"""The service's tables, for SQLite and PostgreSQL alike. Times are microseconds since 1970, UTC; JSON is JSON."""

from __future__ import annotations

from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

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
