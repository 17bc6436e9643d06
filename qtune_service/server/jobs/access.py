"""API tokens: made by the owner, shown once, kept as digests, compared in constant time.

A token is `qtune_ID_SECRET`; the id finds its row, the secret's SHA-256 is compared. Secrets have 256 bits of chance,
so a plain digest is as good as a slow one.

Sessions of browsers, stored by digest: whoever reads the database cannot make a cookie from what it holds.

A session is 256 random bits that its browser alone has. The database has their SHA-256, the API token that was used to
sign in, and when the session ends. So every server on the database knows every session, signing out ends a session
everywhere, and so does revoking its token, or its end.
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
"""The time of a token's last use is written at most once a minute."""


class Scope(StrEnum):
    """What a token allows; each includes the ones before."""

    read = "read"
    submit = "submit"
    admin = "admin"

    def includes(self, other: Scope) -> bool:
        """Whether this scope allows what the other one does."""
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
        """Whether it lets anybody in now."""
        return self.revoked_at is None and (self.expires_at is None or self.expires_at > datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class TokenStore:
    """Tokens in a database."""

    engine: Engine

    def create(self, name: str, scope: Scope, expires_at: datetime | None = None) -> tuple[Token, str]:
        """Make a token: (token, the text to hand over, which is never seen again). Raises SpecError for a used name."""
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
            raise SpecError(f"there is a token named {name!r}", "Revoke it first, or choose another name.") from None
        return self.get(token_id), f"{PREFIX}_{token_id}_{secret}"

    def get(self, token_id: str) -> Token:
        """Raises NotFoundError."""
        if (row := self._row(token_id)) is None:
            raise NotFoundError(f"there is no token {token_id}", "`qtune token list` shows those that there are.")
        return token_of(row)

    def all(self) -> list[Token]:
        """The newest first."""
        with reading(self.engine) as connection:
            return [token_of(row) for row in connection.execute(select(tokens).order_by(tokens.c.id.desc()))]

    def revoke(self, name: str) -> Token:
        """Make a token invalid and end its sessions. Its name becomes free. Raises NotFoundError."""
        with writing(self.engine) as connection:
            row = connection.execute(select(tokens).where(tokens.c.name == name)).one_or_none()
            if row is None:
                raise NotFoundError(f"there is no token named {name!r}", "`qtune token list` shows the names.")
            values = {"revoked_at": now_us(), "name": f"{name} (revoked {row.id})"[:100]}
            connection.execute(tokens.update().where(tokens.c.id == row.id).values(values))
            connection.execute(sessions.delete().where(sessions.c.token_id == row.id))
        return self.get(row.id)

    def check(self, text: str) -> Token | None:
        """The valid token that a text is; None for all others, in the same time whatever is wrong."""
        prefix, _, rest = text.partition("_")
        token_id, _, secret = rest.partition("_")
        row = self._row(token_id)
        known = row.digest if row is not None else _digest("")
        is_right = hmac.compare_digest(known, _digest(secret)) and row is not None and prefix == PREFIX
        return None if not is_right or row is None else self._if_valid(row)

    def _row(self, token_id: str) -> Row[Any] | None:
        if not is_id(token_id):  # whatever else was sent never reaches the database
            return None
        with reading(self.engine) as connection:
            return connection.execute(select(tokens).where(tokens.c.id == token_id)).one_or_none()

    def _if_valid(self, row: Row[Any]) -> Token | None:
        if not (token := token_of(row)).is_valid:
            return None
        self.note_use(row)
        return token

    def note_use(self, row: Row[Any]) -> None:
        """Store the time of a token's last use, at most once a minute."""
        now = now_us()
        if row.last_used_at is None or now - row.last_used_at > USED_EVERY_US:
            with writing(self.engine) as connection:
                connection.execute(tokens.update().where(tokens.c.id == row.id).values(last_used_at=now))


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode(errors="replace")).hexdigest()


def token_of(row: Row[Any]) -> Token:
    """Return the token that a row of the table holds."""
    names = ("created_at", "expires_at", "revoked_at", "last_used_at")
    times: Any = {
        name: None if (us := getattr(row, name)) is None else datetime.fromtimestamp(us / 1e6, UTC) for name in names
    }
    return Token(id=row.id, name=row.name, scope=Scope(row.scope), **times)


SECRET_CHARS = 43
"""Of 32 bytes in URL-safe base64."""
MAX_PER_TOKEN = 20
"""Sessions of one token at a time; signing in once more ends the oldest."""


@dataclass(frozen=True, slots=True)
class SessionStore:
    """Sessions in a database."""

    engine: Engine

    def create(self, token: Token, seconds: int) -> str:
        """Store a new session of a token; return its secret. Sessions that have expired are removed."""
        secret, now = secrets.token_urlsafe(32), now_us()
        ends = now + seconds * 1_000_000
        row = {"digest": _digest(secret), "token_id": token.id, "created_at": now, "expires_at": ends}
        with writing(self.engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.expires_at <= now))
            connection.execute(sessions.insert().values(row))
            _end_oldest(connection, token.id)
        return secret

    def find(self, secret: str) -> Token | None:
        """Return the token of a session, or None where the session or its token is not valid now. One query."""
        if len(secret) != SECRET_CHARS or not secret.isascii():  # whatever else was sent never reaches the database
            return None
        wanted = (
            select(tokens)
            .join(sessions, sessions.c.token_id == tokens.c.id)
            .where(sessions.c.digest == _digest(secret), sessions.c.expires_at > now_us())
        )
        with reading(self.engine) as connection:
            row = connection.execute(wanted).one_or_none()
        if row is None or not (token := token_of(row)).is_valid:
            return None
        TokenStore(self.engine).note_use(row)
        return token

    def end(self, secret: str) -> None:
        """Remove a session; do nothing where there is none."""
        with writing(self.engine) as connection:
            connection.execute(delete(sessions).where(sessions.c.digest == _digest(secret)))


def _end_oldest(connection: Connection, token_id: str) -> None:
    newest = (sessions.c.created_at.desc(), sessions.c.digest)
    all_of_it = select(sessions.c.digest).where(sessions.c.token_id == token_id).order_by(*newest)
    if extra := connection.execute(all_of_it.offset(MAX_PER_TOKEN)).scalars().all():
        connection.execute(delete(sessions).where(sessions.c.digest.in_(extra)))
