"""Upload slots: how many uploads are received at a time, in all and of one owner.

An owner's uploads wait for each other before they wait for the others', so that one token cannot hold every slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from anyio import CapacityLimiter

from qtune_service.errors import BusyError

MAX_UPLOADS, MAX_PER_OWNER = 8, 4
MAX_WAITING = 32
"""Uploads of one owner that may wait; more are refused."""


@dataclass(slots=True)
class _Owner:
    """The slots of an owner, and how many uploads hold or await them."""

    limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_PER_OWNER))
    users: int = 0


@dataclass(frozen=True, slots=True)
class UploadSlots:
    """The slots of a server. It lives in the server's event loop."""

    everybody: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(MAX_UPLOADS))
    """For the thread that receives a file."""
    _owners: dict[str, _Owner] = field(default_factory=dict)

    @asynccontextmanager
    async def of(self, name: str) -> AsyncIterator[None]:
        """Hold one of an owner's slots while the block runs. Raises BusyError where too many wait."""
        owner = self._owners.setdefault(name, _Owner())
        if owner.users >= MAX_PER_OWNER + MAX_WAITING:
            raise BusyError(f"{MAX_WAITING} uploads of {name} are waiting already", "Try again when some have ended.")
        owner.users += 1
        try:
            async with owner.limiter:
                yield
        finally:
            owner.users -= 1
            if not owner.users:
                self._owners.pop(name, None)
