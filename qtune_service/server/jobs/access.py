"""API tokens: made by the owner, shown once, kept as digests, compared in constant time.

A token is `qtune_ID_SECRET`; the id finds its row, the secret's SHA-256 is compared. Secrets have 256 bits of chance,
so a plain digest is as good as a slow one.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, Row, select
from sqlalchemy.exc import IntegrityError

from qtune_service.errors import NotFoundError, SpecError
from qtune_service.server.jobs.database import reading, writing
from qtune_service.server.jobs.ids import is_id, new_id
from qtune_service.server.jobs.store import now_us
from qtune_service.server.jobs.tables import sessions, tokens

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
