"""Figures for Prometheus. What concerns all servers is read from the database when it is asked for, in three short
queries over indexes; what a server has done itself it counts: requests, and the progress that it was the first to see.

So of gauges of jobs, which every server tells alike, one takes the maximum, and of counters the sum.

Whether the database answers, for probes: one question at a time, in a thread of its own, with a time limit.

So a probe neither waits for the worker threads that requests use nor adds to the load of a database that is slow:
probes that arrive meanwhile wait for the same answer.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine, text

from qtune_service import __version__
from qtune_service.errors import DatabaseError
from qtune_service.server.jobs.database import reading
from qtune_service.server.jobs.store import JobStore
from qtune_service.server.middleware import Answered

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


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """A server's figures."""

    def __init__(self, store: JobStore) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Histogram(
            "qtune_request_seconds", "Time until an answer began.", labels, buckets=SECONDS, registry=self._registry
        )
        self._samples = Counter("qtune_samples_scored", "Samples scored.", registry=self._registry)
        self._tokens = Counter("qtune_tokens_scored", "Tokens scored.", registry=self._registry)
        Info("qtune_build", "This server's version.", registry=self._registry).info({"version": __version__})
        ProcessCollector(registry=self._registry)
        self._registry.register(_Jobs(store))

    def note_request(self, answered: Answered) -> None:
        """Count a request. Whatever a client makes up is one label."""
        method = answered.method if answered.method in METHODS else "other"
        self._requests.labels(method, answered.route, str(answered.status)).observe(answered.seconds)

    def note_scored(self, samples: int, tokens: int) -> None:
        """Count the progress of jobs."""
        self._samples.inc(samples)
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        """All of them, in Prometheus' format."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    """Jobs as the database has them; without it only that it is away."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        """Nothing, so that registering asks no database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Ask it."""
        try:
            found = self._store.figures()
        except DatabaseError:
            yield GaugeMetricFamily("qtune_database_up", "Whether the database answers.", 0)
            return
        yield GaugeMetricFamily("qtune_database_up", "Whether the database answers.", 1)
        jobs = GaugeMetricFamily("qtune_jobs", "Jobs by status.", labels=["status"])
        for status, number in found.jobs.items():
            jobs.add_metric([status], number)
        yield jobs
        age_s = 0.0 if found.oldest_queued_us is None else time.time() - found.oldest_queued_us / 1e6
        yield GaugeMetricFamily("qtune_queue_oldest_seconds", "How long the first job waits; 0: none does.", age_s)
        yield GaugeMetricFamily("qtune_tokens_per_second", "Of all running jobs, as last told.", found.tokens_per_s)
