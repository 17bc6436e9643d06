"""Store API tokens and browser sessions in the database by digest, and check the secrets that clients send.

A token is `qtune_ID_SECRET`. The id selects its row, and the SHA-256 of the secret is compared in constant time.
Secrets have 256 random bits, so a plain digest is as safe as a slow one. The text of a token is shown once, when it is
created.

A session is a secret of 256 random bits that only its browser holds. The database stores the SHA-256, the API token
that was used to sign in, and the end of the session, so its content is not enough to forge a cookie. Every server on
the database accepts every session. A session ends everywhere when its user signs out, or when its token is revoked or
expires.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Connection, Engine, Row, delete, select
from sqlalchemy.exc import IntegrityError

from qtune_service.errors import NotFoundError, SpecError
from qtune_service.server.jobs.database import reading, sessions, tokens, writing
from qtune_service.server.jobs.ids import is_id, new_id
from qtune_service.server.jobs.store import now_us

PREFIX = "qtune"
USED_EVERY_US = 60_000_000
"""Shortest time between two writes of a token's last use."""
SECRET_CHARS = 43
"""Length of 32 bytes in URL-safe base64."""
MAX_PER_TOKEN = 20
"""Sessions that a token may have. Signing in once more ends the oldest."""


class Scope(StrEnum):
    """Rights of a token. Each scope includes the ones before it."""

    read = "read"
    submit = "submit"
    admin = "admin"

    def includes(self, other: Scope) -> bool:
        """Return whether this scope includes another one."""
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class Token:
    """A token without its secret. Times are UTC."""

    id: str
    name: str
    scope: Scope
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None

    @property
    def is_valid(self) -> bool:
        """Return whether the token is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Tokens in a database."""

    engine: Engine

    def create(self, name: str, scope: Scope, expires_at: datetime | None = None) -> tuple[Token, str]:
        """Store a new token and return it with its text, which is not stored. Raise SpecError for a used name."""
        token_id, secret = new_id(), secrets.token_urlsafe(32)
        row: dict[str, Any] = {
            "id": token_id,
            "name": name,
            "digest": _digest(secret),
            "scope": str(scope),
            "created_at": now_us(),
            "expires_at": None if expires_at is None else int(expires_at.timestamp() * 1e6),
        }
        try:
            with writing(self.engine) as connection:
                connection.execute(tokens.insert().values(row))
        except IntegrityError:
            raise SpecError(
                f"there is already a token named {name!r}", "Revoke it first, or choose another name."
            ) from None
        return self.get(token_id), f"{PREFIX}_{token_id}_{secret}"

    def get(self, token_id: str) -> Token:
        """Return a token. Raise NotFoundError."""
        if (row := self._row(token_id)) is None:
            raise NotFoundError(f"there is no token {token_id}", "Run `qtune token list` to see all tokens.")
        return token_of(row)

    def all(self) -> list[Token]:
        """Return all tokens, newest first."""
        with reading(self.engine) as connection:
            return [token_of(row) for row in connection.execute(select(tokens).order_by(tokens.c.id.desc()))]

    def revoke(self, name: str) -> Token:
        """Revoke a token, end its sessions and free its name. Raise NotFoundError."""
        with writing(self.engine) as connection:
            row = connection.execute(select(tokens).where(tokens.c.name == name)).one_or_none()
            if row is None:
                raise NotFoundError(f"there is no token named {name!r}", "Run `qtune token list` to see the names.")
            values = {"revoked_at": now_us(), "name": f"{name} (revoked {row.id})"[:100]}
            connection.execute(tokens.update().where(tokens.c.id == row.id).values(values))
            connection.execute(sessions.delete().where(sessions.c.token_id == row.id))
        return self.get(row.id)

    def check(self, text: str) -> Token | None:
        """Return the valid token of a text, or None. A wrong secret takes as long as an unknown id."""
        prefix, _, rest = text.partition("_")
        token_id, _, secret = rest.partition("_")
        row = self._row(token_id)
        known = row.digest if row is not None else _digest("")
        is_right = hmac.compare_digest(known, _digest(secret)) and row is not None and prefix == PREFIX
        if not is_right or row is None or not (token := token_of(row)).is_valid:
            return None
        self.note_use(row)
        return token

    def _row(self, token_id: str) -> Row[Any] | None:
        if not is_id(token_id):  # other texts never reach the database
            return None
        with reading(self.engine) as connection:
            return connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()

    def note_use(self, row: Row[Any]) -> None:
        """Store the time of a token's last use, at most once a minute."""
        now = now_us()
        if row.last_used_at is None or now - row.last_used_at > USED_EVERY_US:
            with writing(self.engine) as connection:
                connection.execute(tokens.update().where(tokens.c.id == row.id).values(last_used_at=now))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def token_of(row: Row[Any]) -> Token:
    """Return the token of a table row."""
    names = ("created_at", "expires_at", "revoked_at", "last_used_at")
    times: Any = {
        name: None if (us := getattr(row, name)) is None else datetime.fromtimestamp(us / 1e6, UTC) for name in names
    }
    return Token(id=row.id, name=row.name, scope=Scope(row.scope), **times)


@dataclass(frozen=True, slots=True)
class SessionStore:
    """Sessions in a database."""

    engine: Engine

    def create(self, token: Token, seconds: int) -> str:
        """Store a new session of a token, remove expired sessions, and return the secret. seconds: its lifetime."""
        secret, now = secrets.token_urlsafe(32), now_us()
        ends = now + seconds * 1_000_000
        row = {"digest": _digest(secret), "token_id": token.id, "created_at": now, "expires_at": ends}
        with writing(self.engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            connection.execute(sessions.insert().values(row))
            _end_oldest(connection, token.id)
        return secret

    def find(self, secret: str) -> Token | None:
        """Return the token of a session with one query, or None where the session or its token is not valid."""
        if len(secret) != SECRET_CHARS or not secret.isascii():  # other texts never reach the database
            return None
        statement = (
            select(tokens)
            .join(sessions, sessions.c.token_id == tokens.c.id)
            .where(sessions.c.digest == _digest(secret), sessions.c.expires_at > now_us())
        )
        with reading(self.engine) as connection:
            row = connection.execute(statement).one_or_none()
        if row is None or not (token := token_of(row)).is_valid:
            return None
        TokenStore(self.engine).note_use(row)
        return token

    def end(self, secret: str) -> None:
        """Remove a session if it exists."""
        with writing(self.engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def _end_oldest(connection: Connection, token_id: str) -> None:
    newest = (sessions.c.created_at.desc(), sessions.c.digest)
    all_of_it = select(sessions.c.digest).where(sessions.c.token_id == token_id).order_by(*newest)
    if extra := connection.execute(all_of_it.offset(MAX_PER_TOKEN)).scalars().all():
        connection.execute(delete(sessions).where(sessions.c.digest.in_(extra)))
