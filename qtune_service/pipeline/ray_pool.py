"""The actors of a Ray Data pool as this package runs them: their processes, the source of their shards, and the watch.

Ray Data binds a shard to an actor and repeats it there without end, on whatever node Ray restarts the actor. Three
parts change that, together with the supervisor (dispatch.py):

    `source`        a task on the driver's node that yields the shards which the supervisor hands out, so that a shard
                    can be handed out again while the execution runs
    `ActorProcess`  asks before an engine is started and before each shard. An actor that Ray restarts where it must not
                    work waits in its constructor, where Ray Data gives it no shards. One that never worked raises, and
                    Ray Data starts another one, not on a closed node
    `PoolWatch`     is called by the execution's loop. It ends the execution when no actor is left

The execution ends when all shards have arrived, whatever an actor that is lost still has.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from qtune_service.errors import EngineError, QTuneError
from qtune_service.pipeline.cluster_state import NODE_CHARS
from qtune_service.pipeline.dispatch import Health
from qtune_service.pipeline.executor import Pool
from qtune_service.pipeline.ray_cluster import look_at_cluster
from qtune_service.pipeline.retries import DEAD_ENGINE_STATUS, FATAL, ReportProgress, RetryPolicy

REPORT_EVERY_S, LOOK_S = 1.0, 2.0
POLL_S, BEAT_S, PARKED_POLL_S, LEAVE_S = 0.5, 5.0, 5.0, 2.0
SEND_S = 2.0
"""Time for the results of finished shards to leave a process that ends. A shard with a lost result is scored again."""
LEAVE_GRACE_S = 20.0
"""Seconds that an actor with a notice may take to save its scores. A step of the engine is usually shorter."""
NEW_POOL_S = 10.0
NODE_LABEL = "ray.io/node-id"
SAFE = "Finished shards are safe: run the same command again to continue."

_log = logging.getLogger(__name__)
leaving = threading.Event()
"""Set in an actor's process that has received SIGTERM."""


def ray_process_name() -> str:
    """Return NODE:PROCESS of this process, with the Ray node's id shortened."""
    import ray

    return f"{_short(ray.get_runtime_context().get_node_id())}:{os.getpid()}"


def _short(node_id: str) -> str:
    return node_id[:NODE_CHARS]


# --- the supervisor's handle


@dataclass(frozen=True, slots=True)
class RaySupervisor:
    """A handle of a supervisor that is a Ray actor."""

    actor: Any

    def call(self, method: str, *arguments: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """Call a method and wait for its result."""
        import ray

        return ray.get(getattr(self.actor, method).remote(*arguments, **options), timeout=timeout_s)

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting for it."""
        getattr(self.actor, method).remote(*arguments)

    def ask(self, method: str) -> Any:
        """Call a method and return the reference of its result."""
        return getattr(self.actor, method).remote()

    def reporter(self, shard: int) -> ReportProgress:
        """Return a function that reports at most once every REPORT_EVERY_S and never waits for the answer."""
        return _Reporter(self.actor, shard)


class _Reporter:
    def __init__(self, actor: Any, shard: int) -> None:
        self._actor, self._shard = actor, shard
        self._answer: Any = None
        self._next_s = 0.0
        self._stopping = False

    def __call__(self, tokens: int) -> bool:
        import ray

        now = time.monotonic()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._stopping, self._answer = self._stopping or ray.get(self._answer), None
        if self._answer is None and now >= self._next_s:
            self._answer, self._next_s = self._actor.report.remote(self._shard, tokens), now + REPORT_EVERY_S
        return self._stopping or leaving.is_set()


# --- the source


def source(batch: Any, supervisor: Any, values: Mapping[int, bytes]) -> Iterator[Any]:  # noqa: ARG001 - the one row
    """Yield a row for each shard that the supervisor hands out, until all have arrived."""
    count = 0
    while (shards := supervisor.call("take", count)) is not None:
        for shard in shards:
            yield row_table(shard, values[shard], b"")
        count += len(shards)
        time.sleep(POLL_S)


def row_table(shard: int, value: bytes, failure: bytes) -> Any:
    """Return the table of one shard."""
    import pyarrow as pa

    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "value": pa.array([value], pa.large_binary()),
            "failure": pa.array([failure], pa.large_binary()),
        }
    )


# --- an actor's process


class ActorProcess:
    """What the process of an actor reports to the supervisor, and the orders that it follows."""

    def __init__(self, retries: RetryPolicy) -> None:
        import ray

        self._supervisor = retries.supervisor
        self.name = ray_process_name()
        self._stopped: set[int] = set()
        self._busy: set[int] = set()
        order = self._supervisor.call("start_actor", self.name, str(ray.get_runtime_context().get_actor_id()))
        if order != "work":
            self._go(order, EngineError(f"engines do not start on the node of {self.name}"))

    def started(self) -> None:
        """Report that the engine runs. Watch for SIGTERM, and give signs of life."""
        self._supervisor.call("actor_started", self.name)
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGTERM, self._on_sigterm)
        threading.Thread(target=self._beat, daemon=True, name="beat").start()

    def failed(self, stage: str, error: Exception) -> NoReturn:
        """Report that the engine did not start, and end this process, or wait where it must not be repeated."""
        if not isinstance(error, QTuneError):
            error = EngineError(f"{stage}: {type(error).__name__}: {error}")
        self._go(self._supervisor.call("actor_failed", self.name, error), error)

    def hold(self, shard: int) -> bool:
        """Ask for a shard. False: another actor has it."""
        order = self._supervisor.call("hold", self.name, shard)
        if order == "again":
            os._exit(DEAD_ENGINE_STATUS)
        if order == "work":
            self._busy.add(shard)
        return bool(order == "work")

    def release(self, shard: int, *, is_stopped: bool) -> None:
        """Return a shard. One that was stopped by SIGTERM is handed out again when this process leaves."""
        if is_stopped and leaving.is_set():
            self._stopped.add(shard)
            self._busy.discard(shard)
            threading.Event().wait()  # until `_leave` ends the process
        self._busy.discard(shard)
        self._supervisor.send("release", self.name, shard)

    def _go(self, order: str, error: Exception) -> NoReturn:
        while order == "park":
            time.sleep(PARKED_POLL_S)
            if self._supervisor.call("is_over"):
                os._exit(DEAD_ENGINE_STATUS)
        time.sleep(LEAVE_S)
        if order == "again":
            os._exit(DEAD_ENGINE_STATUS)
        raise error  # Ray does not start this actor again, and Ray Data another one

    def _beat(self) -> None:
        while not leaving.wait(BEAT_S):
            self._supervisor.send("beat", self.name)

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        if not leaving.is_set():
            leaving.set()
            threading.Thread(target=self._leave, daemon=True).start()

    def _leave(self) -> None:
        """Wait until the scores in progress are saved, hand the shards back, and end the process."""
        deadline_s = time.monotonic() + LEAVE_GRACE_S
        while self._busy and time.monotonic() < deadline_s:
            time.sleep(0.05)
        time.sleep(SEND_S)  # for the results of finished shards
        try:
            self._supervisor.call("actor_left", self.name, sorted(self._stopped), timeout_s=LEAVE_S)
        finally:
            os._exit(DEAD_ENGINE_STATUS)


# --- the driver's side


class PoolLostError(Exception):
    """No actor of a pool works, but nodes that are not closed may hold another pool."""


class PoolWatch:
    """Looks at the pool every LOOK_S, and raises in the execution's loop when no actor is left."""

    def __init__(self, retries: RetryPolicy, pool: Pool, on_problems: Callable[[tuple[str, ...]], None]) -> None:
        self._supervisor: Any = retries.supervisor
        self._retries, self._pool, self._on_problems = retries, pool, on_problems
        self._executor: Any = None
        self._health: Any = None
        self._next_s = 0.0
        self._seen: tuple[str, ...] = ()
        self._empty_since_s: float | None = None
        self.closed_ids: tuple[str, ...] = ()

    def step(self, executor: Any) -> None:
        """Look at the pool if it is time. Never wait for the supervisor."""
        import ray

        self._executor, now = executor, time.monotonic()
        if self._health is None and now >= self._next_s:
            try:
                self._supervisor.send("see", frozenset(look_at_cluster().placed))
            except Exception as error:  # noqa: BLE001 - an edge: a head node that does not answer now may answer again
                _log.debug("no look at the cluster: %s", error)
            self._health, self._next_s = self._supervisor.ask("health"), now + LOOK_S
        elif self._health is not None and ray.wait([self._health], timeout=0)[0]:
            health, self._health = ray.get(self._health), None
            self._judge(health)

    def close(self) -> None:
        """End the execution, with the actors that wait."""
        _watches.clear()
        if self._executor is not None:
            self._executor.shutdown(force=True)

    def _judge(self, health: Health) -> None:
        if health.problems != self._seen:
            self._seen = health.problems
            self._on_problems(health.problems)
        if not health.ended:
            return
        limit = self._retries.max_failed_actors
        if limit is not None and health.ended > limit:
            raise self._error(health, f"{health.ended} scoring actors failed, and limits.max_failed_actors is {limit}")
        nodes = _nodes()
        self.closed_ids = tuple(node for node in nodes if _short(node) in health.closed_nodes)
        if health.working:
            self._empty_since_s = None
            return
        room = [node for node in nodes if node not in self.closed_ids and self._fits(nodes[node])]
        if not room:
            raise self._error(health, "no scoring actor works")
        self._empty_since_s = self._empty_since_s or time.monotonic()
        if health.parked and time.monotonic() - self._empty_since_s > NEW_POOL_S:
            raise PoolLostError

    def _fits(self, resources: Mapping[str, float]) -> bool:
        return resources.get("GPU", 0) >= self._pool.gpus and resources.get("CPU", 0) >= self._pool.cpus

    def _error(self, health: Health, what: str) -> Exception:
        """Return the error of the engines if it is one, else one that lists all problems."""
        errors: list[QTuneError] = self._supervisor.call("start_errors")
        fatal = next((error for error in errors if isinstance(error, FATAL)), None)
        if fatal is not None:
            return fatal
        if errors and all(problem.endswith(f": {errors[0].message}") for problem in health.problems):
            return errors[0]
        hint = next((error.hint for error in errors if error.hint), "")
        return EngineError(f"{what}: {'; '.join(health.problems)}", f"{hint} {SAFE}".strip())


def _nodes() -> dict[str, Mapping[str, float]]:
    """Return the resources of the nodes that are alive, by id."""
    import ray

    return {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}


_watches: list[PoolWatch] = []
"""The watch of the current execution of this process, if it has a pool."""


def watch(retries: RetryPolicy, pool: Pool, on_problems: Callable[[tuple[str, ...]], None]) -> PoolWatch:
    """Watch the pool of the next execution of this process."""
    _watches[:] = [PoolWatch(retries, pool, on_problems)]
    return _watches[0]


def end_execution() -> None:
    """End the execution of this process that has a pool, if there is one, before the process leaves the cluster."""
    for current in [*_watches]:
        current.close()


class ExecutionHooks:
    """Ray Data calls these (ExecutionCallback) in the loop of each execution. An exception ends the execution."""

    def before_execution_starts(self, executor: Any) -> None:
        """Do nothing."""

    def on_execution_step(self, executor: Any) -> None:
        """Let the watch look at the pool."""
        for current in _watches:
            current.step(executor)

    def after_execution_succeeds(self, executor: Any) -> None:
        """Do nothing."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """Do nothing."""


def actor_options(bundles: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the options of a new actor: it starts on a node that is not closed, or in a placement group."""
    if bundles:
        return _in_placement_group(bundles)
    closed = [node for current in _watches for node in current.closed_ids]
    return {"label_selector": {NODE_LABEL: f"!in({','.join(closed)})"}} if closed else {}


_groups: list[Any] = []
"""Placement groups of the current pool."""


def _in_placement_group(bundles: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the options of an actor in a placement group of its own, where vLLM finds the bundles of its workers."""
    from ray.util import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    group = placement_group([dict(bundle) for bundle in bundles], strategy="PACK")
    _groups.append(group)
    return {"scheduling_strategy": PlacementGroupSchedulingStrategy(group, placement_group_capture_child_tasks=True)}


def remove_placement_groups() -> None:
    """Release the placement groups of an execution that has ended, and with them their resources."""
    if not _groups:
        return
    from ray.util import remove_placement_group

    for group in _groups:
        with contextlib.suppress(Exception):  # of a cluster that is gone
            remove_placement_group(group)
    _groups.clear()
