"""Executors: run the stages of a job on its shards, on Ray or in this process.

A job is a sequence of stages, each a function of one shard: `(index, value) -> value`. Values are typed and frozen
(`Chunk`, `EncodedShard`, `ScoredShard`, `ScoredMarker`, ...). An executor passes them from stage to stage and yields
the last ones in any order. `RayExecutor` (ray_executor.py) is the default: tasks and actors on the nodes of a cluster,
and the only place that serialises values. `LocalExecutor` runs the same stages here, one shard after the other. It
needs no Ray, survives no crash of the process, and gives the same output.
"""

from __future__ import annotations

import functools
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, QTuneError, ShardFailedError
from qtune_service.pipeline.cluster_state import ClusterState
from qtune_service.pipeline.retries import LocalSupervisor, PassedOnError, RetryPolicy, StoppedError, Supervisor
from qtune_service.pipeline.shutdown import Stop

StageFunction: TypeAlias = Callable[[int, Any], Any]
"""The work of a stage on one shard: (index, value) -> value."""

SHARDS_PER_TASK = 64
"""Shards per process of a stage of light work."""
LIGHT_CPUS = 0.5
"""CPUs that a task reserves. It must differ from those of an actor, or Ray Data fuses encoding into the actor."""


@dataclass(frozen=True, slots=True)
class Pool:
    """The scoring actors: their number, and the resources of each."""

    min_actors: int
    max_actors: int | None
    """None: as many as the cluster has room for, including nodes that join later."""
    cpus: float
    gpus: float
    threads: int
    """CPU threads of one actor's engine."""
    bundles: tuple[Mapping[str, float], ...] = ()
    """Resources of the placement group that holds an actor and the workers of its engine; see pool_size.py."""

    @property
    def engine_arguments(self) -> dict[str, Any]:
        """Return the arguments of vLLM that go with this pool."""
        return {"distributed_executor_backend": "ray"} if self.bundles else {}


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a job: a function that runs as tasks, or a class whose instances are the actors of a pool."""

    name: str
    target: Callable[..., Any]
    """Tasks call it with (index, value, *arguments). A pool calls it with (*arguments) and gets a StageFunction."""
    arguments: tuple[Any, ...] = ()
    num_cpus: float = LIGHT_CPUS
    """CPUs of a task."""
    pool: Pool | None = None
    shards_per_task: int = SHARDS_PER_TASK
    setup: Callable[[], None] | None = None
    """Called in a worker process before each of its tasks. It must be cheap when repeated."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Environment variables that the processes of a pool start with."""
    on_cpu_nodes: bool = False
    """Whether its tasks run on the nodes for CPU work, where the cluster has some, so that no GPU node stays for it."""
    calls_in_flight: int = 1
    """Shards that an actor of a pool holds. With more than one, its target reports to the supervisor when a shard takes
    and leaves the engine (Supervisor.enter)."""
    is_closing: bool = False
    """Whether the stage continues while the job stops, because it saves the work of other stages."""


@dataclass(frozen=True, slots=True)
class StageResult:
    """A shard that left the last stage, or the reason why it did not get there."""

    shard: int
    value: Any
    problem: ShardFailedError | StoppedError | PassedOnError | None = None


def ignore_problems(_problems: tuple[str, ...]) -> None:
    """Ignore the problems of actors."""


class Executor(Protocol):
    """Runs stages on shards."""

    @property
    def process_name(self) -> Callable[[], str]:
        """Return a picklable function that names the process that calls it, as NODE:PROCESS."""
        ...

    def start(self, stop: Stop) -> None:
        """Get the workers ready. A second call has no effect. Raise EngineError where this is impossible."""
        ...

    def for_small_work(self) -> Executor:
        """Return the executor for work that takes less time than starting this one."""
        ...

    def size_pool(self, spec: EngineSpec) -> Pool:
        """Return the scoring pool that fits the workers."""
        ...

    def reserve(self, spec: EngineSpec) -> None:
        """Ask for the GPUs of the scoring pool until `run` starts it, so that nodes start while the job is planned."""
        ...

    def cluster_state(self) -> ClusterState | None:
        """Return the resources of the cluster and who uses them, or None where there is no cluster."""
        ...

    def retry_policy(self, max_attempts: int, max_failed_actors: int | None = None) -> RetryPolicy:
        """Return a policy for one scoring run, with a supervisor of its own."""
        ...

    def run(
        self,
        items: Iterable[tuple[int, Any]],
        *stages: Stage,
        retries: RetryPolicy | None = None,
        on_problems: Callable[[tuple[str, ...]], None] = ignore_problems,
    ) -> Iterator[StageResult]:
        """Send (index, value) through the stages and yield the shards that leave the last one, in any order.

        Raise the first error that concerns the whole job. Without `retries` every error does. `on_problems` gets all
        problems of actors whenever there is a new one, in any thread.
        """
        ...

    def close(self) -> None:
        """Release the workers."""
        ...


def run_stage(stage: Stage, retries: RetryPolicy | None, function: StageFunction, shard: int, value: Any) -> Any:
    """Run a stage on one shard. Raise QTuneError only: other errors become an EngineError that names the shard."""
    work = functools.partial(function, shard, value)
    try:
        if retries is None:
            return work()
        shares = stage.calls_in_flight > 1
        return retries.run(stage.name, shard, work, closing=stage.is_closing, shares=shares)
    except QTuneError:
        raise
    except Exception as error:  # an edge: the driver reports the place, not a stack of the executor
        raise EngineError(f"{stage.name}, shard {shard}: {type(error).__name__}: {error}") from error


class LocalExecutor:
    """Runs all stages in this process, one shard after the other, with one engine.

    Failed shards are retried as under Ray. An error of the engine ends the job, since no other process can take over;
    running the job again continues it.
    """

    @property
    def process_name(self) -> Callable[[], str]:
        """Return the function that names this process."""
        return local_process_name

    def start(self, stop: Stop) -> None:
        """Do nothing: this process is the worker."""

    def for_small_work(self) -> LocalExecutor:
        """Return this executor."""
        return self

    def size_pool(self, spec: EngineSpec) -> Pool:
        """Return a pool of one actor, with the threads of an actor on this machine."""
        return size_local_pool(spec, actors=1)

    def reserve(self, spec: EngineSpec) -> None:
        """Do nothing: the engine runs in this process."""

    def cluster_state(self) -> None:
        """Return None: there is no cluster."""

    def retry_policy(self, max_attempts: int, max_failed_actors: int | None = None) -> RetryPolicy:
        """Return a policy whose supervisor is an object of this process."""
        supervisor = LocalSupervisor(Supervisor())
        return RetryPolicy(supervisor, max_attempts, replaces_workers=False, max_failed_actors=max_failed_actors)

    def run(
        self,
        items: Iterable[tuple[int, Any]],
        *stages: Stage,
        retries: RetryPolicy | None = None,
        on_problems: Callable[[tuple[str, ...]], None] = ignore_problems,  # noqa: ARG002 - an error of the engine ends the job
    ) -> Iterator[StageResult]:
        """Send each shard through all stages before the next one. An actor is made with the first shard it gets."""
        functions = [_function_of(stage, retries) for stage in stages]
        for shard, value in items:
            try:
                for stage, function in zip(stages, functions, strict=True):
                    value = run_stage(stage, retries, function, shard, value)  # noqa: PLW2901 - it travels
            except (ShardFailedError, StoppedError) as problem:
                yield StageResult(shard, None, problem)
            else:
                yield StageResult(shard, value)

    def close(self) -> None:
        """Do nothing: no worker is held."""


def _function_of(stage: Stage, retries: RetryPolicy | None) -> StageFunction:
    """Return the function of a stage. The actor of a pool is made at its first call, and reports what it does."""
    if stage.pool is None:
        return lambda shard, value: stage.target(shard, value, *stage.arguments)

    def note(*state: Any) -> None:
        if retries is not None:
            retries.supervisor.send("set_actor", local_process_name(), *state)

    @functools.cache
    def actor() -> StageFunction:
        note("starting")
        made: StageFunction = stage.target(*stage.arguments)
        return made

    def call(shard: int, value: Any) -> Any:
        function = actor()
        note("scoring", shard)
        try:
            return function(shard, value)
        finally:
            note("idle")

    return call


def local_process_name() -> str:
    """Return HOST:PROCESS of this process."""
    return f"{socket.gethostname()}:{os.getpid()}"


def size_local_pool(spec: EngineSpec, *, actors: int) -> Pool:
    """Return a pool of `actors` without GPUs that share all cores of this machine."""
    reserved = max(1, int(spec.cpus_per_actor))
    return Pool(actors, actors, spec.cpus_per_actor, 0.0, max(reserved, (os.cpu_count() or 1) // actors))
