"""Prometheus metrics and the readiness probe.

Job gauges come from the shared database, by three indexed queries a scrape. Every server reports the same values, so
aggregate them with `max`. Request and token counters are per server, so aggregate them with `sum`.

The readiness probe runs one query at a time in its own thread, with a time limit. A probe does not wait for the worker
threads of requests, and concurrent probes share one query, so probes add no load to a slow database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from anyio import CapacityLimiter, to_thread
from prometheus_client import CollectorRegistry, Counter, Histogram, Info, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import Engine, text

from qtune_service import __version__
from qtune_service.errors import DatabaseError
from qtune_service.job_states import Progress
from qtune_service.server.jobs.database import reading
from qtune_service.server.jobs.store import JobStore
from qtune_service.server.middleware import Answered

LIMIT_S = 4.0
"""Shorter than the 5 s timeout of the probes of Kubernetes and of the image."""


@dataclass(slots=True)
class Readiness:
    """Readiness of the database. Used on the event loop only."""

    engine: Engine
    _limiter: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    _asking: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Raise DatabaseError if the database does not respond within LIMIT_S."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._ask())
            self._asking.add_done_callback(_retrieve_error)
        try:
            await asyncio.wait_for(asyncio.shield(self._asking), LIMIT_S)
        except TimeoutError:
            raise DatabaseError(
                f"the database did not respond within {LIMIT_S:.0f} s",
                "Check that it runs and that its disk is not full.",
            ) from None

    async def _ask(self) -> None:
        await to_thread.run_sync(self._select, limiter=self._limiter, abandon_on_cancel=True)

    def _select(self) -> None:
        with reading(self.engine) as connection:
            connection.execute(text("SELECT 1"))


def _retrieve_error(task: asyncio.Task[None]) -> None:
    """Retrieve the error of a task whose waiters may have timed out, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REASONS = ("resources", "loading", "shards", "scoring", "hanging", "reading", "steps", "other")
PHASES = ("starting", "idle", "scoring", "failed", "retired")
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Metrics:
    """Metrics of one server."""

    def __init__(self, store: JobStore) -> None:
        self._registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Histogram(
            "qtune_request_seconds", "Time to response start.", labels, buckets=SECONDS, registry=self._registry
        )
        self._samples = Counter("qtune_samples_scored", "Samples scored.", registry=self._registry)
        self._tokens = Counter("qtune_tokens_scored", "Tokens scored.", registry=self._registry)
        Info("qtune_build", "Version of this server.", registry=self._registry).info({"version": __version__})
        ProcessCollector(registry=self._registry)
        self._registry.register(_Jobs(store))

    def note_request(self, answered: Answered) -> None:
        """Count a request. Unknown methods share one label."""
        method = answered.method if answered.method in METHODS else "other"
        self._requests.labels(method, answered.route, str(answered.status)).observe(answered.seconds)

    def note_scored(self, samples: int, tokens: int) -> None:
        """Count scored samples and tokens."""
        self._samples.inc(samples)
        self._tokens.inc(tokens)

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self._registry)


class _Jobs(Collector):
    """Collector of job gauges from the database, or of its outage alone."""

    def __init__(self, store: JobStore) -> None:
        self._store = store

    def describe(self) -> list[GaugeMetricFamily]:
        """Return nothing, so that registration does not query the database."""
        return []

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Query the database."""
        try:
            found = self._store.figures()
        except DatabaseError:
            yield GaugeMetricFamily("qtune_database_up", "1 if the database responds.", 0)
            return
        yield GaugeMetricFamily("qtune_database_up", "1 if the database responds.", 1)
        jobs = GaugeMetricFamily("qtune_jobs", "Jobs by status.", labels=["status"])
        for status, number in found.jobs.items():
            jobs.add_metric([status], number)
        yield jobs
        age_s = 0.0 if found.oldest_queued_us is None else time.time() - found.oldest_queued_us / 1e6
        yield GaugeMetricFamily("qtune_queue_oldest_seconds", "Age of the oldest queued job, or 0.", age_s)
        yield GaugeMetricFamily("qtune_tokens_per_second", "Last reported sum over running jobs.", found.tokens_per_s)
        yield from _workers(found.running)


def _workers(running: Sequence[Progress]) -> Iterator[GaugeMetricFamily]:
    """Yield what running jobs wait for, and their actors. Labels are fixed, since outputs are not trusted."""
    waiting = GaugeMetricFamily("qtune_jobs_waiting", "Running jobs that wait, by reason.", labels=["reason"])
    longest = GaugeMetricFamily("qtune_waiting_seconds", "Longest wait of a running job, or 0.", labels=["reason"])
    for reason in REASONS:
        waits = [progress.waiting_s for progress in running if _known(progress.waiting_for, REASONS) == reason]
        waiting.add_metric([reason], len(waits))
        longest.add_metric([reason], max(waits, default=0.0))
    actors = GaugeMetricFamily("qtune_actors", "Scoring actors of running jobs, by phase.", labels=["phase"])
    for phase in PHASES:
        actors.add_metric([phase], sum(progress.phases.get(phase, 0) for progress in running))
    wanted = GaugeMetricFamily("qtune_actors_wanted", "Scoring actors that running jobs requested.")
    wanted.add_metric([], sum(progress.actors_wanted for progress in running))
    yield from (waiting, longest, actors, wanted)


def _known(reason: str, known: Sequence[str]) -> str:
    return reason if reason in known or not reason else known[-1]
