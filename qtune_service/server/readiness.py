"""Whether the database answers, for probes: one question at a time, in a thread of its own, with a time limit.

So a probe neither waits for the worker threads that requests use nor adds to the load of a database that is slow:
probes that arrive meanwhile wait for the same answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from anyio import CapacityLimiter, to_thread
from sqlalchemy import Engine, text

from qtune_service.errors import DatabaseError
from qtune_service.server.jobs.database import reading

LIMIT_S = 4.0
"""Less than the 5 s after which probes of Kubernetes and of the image give up."""


@dataclass(slots=True)
class Readiness:
    """Asks a database. It lives in the server's event loop."""

    engine: Engine
    _limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    _asking: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Raise DatabaseError where the database does not answer within LIMIT_S."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_look_at_error)
        try:
            await asyncio.wait_for(asyncio.shield(self._asking), LIMIT_S)
        except TimeoutError:
            raise DatabaseError(
                f"the database has not answered within {LIMIT_S:.0f} s", "Is it there, and is its disk full?"
            ) from None

    async def _ask(self) -> None:
        await to_thread.run_sync(self._select, limiter=self._limiter, abandon_on_cancel=True)

    def _select(self) -> None:
        with reading(self.engine) as connection:
            connection.execute(text("SELECT 1"))


def _look_at_error(task: asyncio.Task[None]) -> None:
    """Mark an error as seen: whoever waited for it may have given up."""
    if not task.cancelled():
        task.exception()
