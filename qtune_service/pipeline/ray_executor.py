"""The Ray executor: start or join a cluster, size the actor pool, stream shards through stages with Ray Data.

Values travel as pickled bytes, one shard a row, and only this module pickles them. Ray Data may group rows into blocks,
but never splits or joins shards. Arrow tables inside a value are pickled as buffers, not item by item.

A stage never raises inside Ray. It returns the error as data, and `run` raises it on the driver as the original error
instead of a stack of Ray frames. With a retry policy (retries.py) a shard that fails permanently is yielded as failed
and the others continue.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import os
import pickle
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, QTuneError, ShardFailedError
from qtune_service.pipeline.actor_states import Phase
from qtune_service.pipeline.executor import (
    Executor,
    LocalExecutor,
    Pool,
    Stage,
    StageFunction,
    StageResult,
    run_stage,
    size_local_pool,
)
from qtune_service.pipeline.retries import ReportProgress, RetryPolicy, StoppedError, Supervisor
from qtune_service.pipeline.shutdown import Stop

CONNECT_TIMEOUT_S = 10
CPU_NODES = "QTUNE_CPU_NODES"
"""Environment variable of drivers: the name of a Ray resource of the nodes for CPU work, such as `cpu_node`."""
CPU_NODE_SHARE = 0.001
"""How much of it a task takes: a node with 1 of it runs as many tasks as its CPUs allow."""
HEAD_POLL_S, HEAD_LOST_S = 5.0, 60.0
REPORT_EVERY_S = 1.0
_lost, _left = threading.Event(), threading.Event()
"""Events of the current cluster: its head node is gone, and this process has left it."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Cluster:
    """The resources that a job runs on."""

    resources: Mapping[str, float]
    is_local: bool
    """Whether this process started it for this job alone."""

    def max_tasks(self, num_shards: int, shards_per_task: int) -> int | None:
        """Return how many tasks of a stage run at a time. None leaves it to the cluster's CPUs.

        On one machine a small job gets few: starting a process costs seconds of CPU.
        """
        cores = os.cpu_count() or 1
        return max(1, min(cores, num_shards // shards_per_task), cores // 2) if self.is_local else None


class RayExecutor:
    """Runs stages on a Ray cluster: the one at `address` or RAY_ADDRESS, else one that lives as long as this process.

    The cluster is joined or started by `start`, so an executor that is never used costs nothing.
    """

    def __init__(self, address: str | None = None) -> None:
        self._address = address
        self._cluster: Cluster | None = None
        self._reserved: list[Any] = []

    @property
    def process_name(self) -> Callable[[], str]:
        """Return the function that names a worker's process."""
        return ray_process_name

    def start(self, stop: Stop) -> None:
        """Join or start the cluster, once, and watch its head node."""
        if self._cluster is None:
            self._cluster = connect(self._address)
            stop.install_again()
            watch_head(stop.fail)

    def for_small_work(self) -> Executor:
        """Return this executor if it is started or has an address, else the local one."""
        return self if self._cluster is not None or self._address is not None else LocalExecutor()

    def size_pool(self, spec: EngineSpec) -> Pool:
        """Return the scoring pool that fits the cluster."""
        return size_pool(spec, self._started())

    def reserve(self, spec: EngineSpec) -> None:
        """Reserve the GPUs of each actor by a placement group, which an autoscaler sees as demand.

        Ray removes the groups when the driver ends, also where it is killed. CPUs are not reserved: planning uses them.
        """
        from ray.util.placement_group import placement_group

        pool = size_pool(spec, self._started())
        if pool.gpus and not self._started().is_local and not self._reserved:
            bundle = {"GPU": pool.gpus}
            self._reserved = [placement_group([bundle], strategy="PACK") for _ in range(pool.min_actors)]

    def _release(self) -> None:
        """Give reserved GPUs to the actors that are about to start."""
        from ray.util.placement_group import remove_placement_group

        for group in self._reserved:
            remove_placement_group(group)
        self._reserved = []

    def retry_policy(self, max_attempts: int) -> RetryPolicy:
        """Start a supervisor on the driver's node, where it lives as long as the driver's cluster."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
        return RetryPolicy(RaySupervisor(ray.remote(Supervisor).options(**options).remote()), max_attempts)

    def run(
        self, items: Iterable[tuple[int, Any]], *stages: Stage, retries: RetryPolicy | None = None
    ) -> Iterator[StageResult]:
        """Send (index, value) through the stages with Ray Data and yield shards as they come out."""
        import ray

        rows = [{"shard": index, "value": pickle.dumps(value), "failure": b""} for index, value in items]
        if not rows:
            return
        if any(stage.pool is not None for stage in stages):
            self._release()
        dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
        for stage in stages:
            dataset = _add(dataset, stage, retries, max_tasks(self._started(), stages, stage, len(rows)), len(rows))
        try:
            for row in dataset.iter_rows():
                error = pickle.loads(row["failure"]) if row["failure"] else None  # noqa: S301 - from `_run_row`
                if error is not None and not isinstance(error, (ShardFailedError, StoppedError)):
                    raise error
                value = None if error is not None else pickle.loads(row["value"])  # noqa: S301 - from `_run_row`
                yield StageResult(row["shard"], value, error)
        except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
            is_lost_worker = isinstance(error, ray.exceptions.RayError)
            raise EngineError(
                f"{'a worker was lost' if is_lost_worker else 'Ray Data stopped the job'}: {_first_line(error)}",
                "Finished shards are safe: run the same command again to continue."
                + (" It may have run out of memory." if is_lost_worker else ""),
            ) from error

    def close(self) -> None:
        """Leave the cluster, which ends it if it was started here."""
        self._cluster, self._reserved = None, []
        if "ray" not in sys.modules:
            return
        import ray

        _left.set()
        if not is_lost():
            ray.shutdown()

    def _started(self) -> Cluster:
        assert self._cluster is not None, "start() comes first"
        return self._cluster


# --- the cluster


def connect(address: str | None) -> Cluster:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on this machine that ends with this process."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    global _lost, _left
    _lost, _left = threading.Event(), threading.Event()
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        _check_reachable(address)
    import ray

    # Ray Data divides CPUs among stages. With this many, all of `max_tasks` run beside an engine and are the limit.
    local = {} if address else {"num_cpus": 2 * (os.cpu_count() or 1) + 1, "include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            ignore_reinit_error=True,
            **local,
        )
    except Exception as error:  # an edge: Ray raises bare Exceptions here
        where = address or f"this machine (temporary files under {tempfile.gettempdir()})"
        raise EngineError(
            f"cannot start or join Ray at {where}: {_first_line(error)}",
            "Check --ray-address / RAY_ADDRESS, that the cluster runs the same Ray and Python versions, and its token.",
        ) from error
    _configure_ray_data()
    return Cluster(ray.cluster_resources(), is_local=address is None)


def _check_reachable(address: str) -> None:
    """Try the address first: Ray itself waits for minutes where nobody answers."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "Check --ray-address / RAY_ADDRESS: it is HOST:PORT of the head, as `ray start --head` prints it.",
        ) from error


def watch_head(lost: Callable[[EngineError], None]) -> None:
    """Watch the head node in a thread and call `lost` once it has not answered for HEAD_LOST_S. Ray waits forever."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    left, is_gone = _left, _lost  # of this connection, even if the process joins another one later

    def watch() -> None:
        answered_s = time.monotonic()
        while time.monotonic() - answered_s < HEAD_LOST_S:
            if left.wait(HEAD_POLL_S):
                return
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
                answered_s = time.monotonic()
        is_gone.set()
        lost(
            EngineError(
                f"the head node of the Ray cluster at {address} has not answered for {HEAD_LOST_S:.0f} s",
                "Finished shards are safe: run the same command again to continue, on this cluster or another one.",
            )
        )

    threading.Thread(target=watch, daemon=True, name="head").start()


def is_lost() -> bool:
    """Return whether the head node is gone. Leaving Ray in an orderly way would then hang."""
    return _lost.is_set()


def ray_process_name() -> str:
    """Return NODE:PROCESS of this process, with the Ray node's id shortened."""
    import ray

    return f"{str(ray.get_runtime_context().get_node_id())[:12]}:{os.getpid()}"


def size_pool(spec: EngineSpec, cluster: Cluster) -> Pool:
    """Fit the scoring pool to the cluster's resources: an actor for each GPU, now and later, or one on CPUs."""
    cluster_gpus = cluster.resources.get("GPU", 0.0)
    gpus = spec.gpus_per_actor
    if gpus is None:
        gpus = float(spec.tensor_parallel_size) if cluster_gpus else 0.0
    high: int | None
    if spec.num_actors is not None:
        low, high = spec.num_actors
    else:
        low = max(1, math.floor(cluster_gpus / gpus)) if gpus else 1
        high = low if cluster.is_local or not gpus else None
    # On this machine alone the actors may share all cores; on a cluster each has the cores that it reserved.
    reserved = max(1, math.floor(spec.cpus_per_actor))
    threads = reserved if gpus or not cluster.is_local else size_local_pool(spec, actors=high or 1).threads
    return Pool(low, high, spec.cpus_per_actor, gpus, threads)


def max_tasks(cluster: Cluster, stages: Sequence[Stage], stage: Stage, num_shards: int) -> int | None:
    """Return how many tasks of a stage may run at a time, given the other stages of its job."""
    limit = cluster.max_tasks(num_shards, stage.shards_per_task)
    pool = next((other.pool for other in stages if other.pool is not None), None)
    if limit is None and pool is not None and not pool.gpus:
        return pool.max_actors  # Ray Data would grant unbounded tasks the CPUs that the pool needs to grow
    return limit


# --- the supervisor


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
        return self._stopping


# --- stages on Ray Data


def _add(dataset: Any, stage: Stage, retries: RetryPolicy | None, tasks: int | None, num_shards: int) -> Any:
    """Append one stage. Batches have one row: a shard is never split or joined with another."""
    import ray

    common: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    if (pool := stage.pool) is None:
        common |= {"num_cpus": stage.num_cpus, "compute": ray.data.TaskPoolStrategy(size=tasks)}
        if stage.on_cpu_nodes and (name := os.environ.get(CPU_NODES)):
            common["resources"] = {name: CPU_NODE_SHARE}
        return dataset.map_batches(_run_task, fn_args=(stage, retries), **common)
    size = ray.data.ActorPoolStrategy(
        min_size=min(pool.min_actors, num_shards), max_size=pool.max_actors and min(pool.max_actors, num_shards)
    )
    common |= {"num_cpus": pool.cpus, "num_gpus": pool.gpus or None, "compute": size}
    if stage.environment:
        common["runtime_env"] = {"env_vars": dict(stage.environment)}
    return dataset.map_batches(_StageActor, fn_constructor_args=(stage, retries), **common)


class _StageActor:
    """An actor of a pool. An error of its constructor is reported with its first shard."""

    def __init__(self, stage: Stage, retries: RetryPolicy | None) -> None:
        self._stage, self._retries = stage, retries
        self._note("starting")
        try:
            self._function = stage.target(*stage.arguments)
            self._note("idle")
        except Exception as error:  # noqa: BLE001 - reported to the driver by `_run_row`
            reported = retries.give_up_or_retire(stage.name, error) if retries else error
            self._function, self._retries = functools.partial(_fail, reported), None

    def __call__(self, batch: Any) -> Any:
        self._note("scoring", batch["shard"][0].as_py())
        try:
            return _run_row(self._stage, self._retries, self._function, batch)
        finally:
            self._note("idle")

    def _note(self, phase: Phase, shard: int | None = None) -> None:
        """Report what this actor does."""
        if self._retries is not None:
            self._retries.supervisor.send("set_actor", ray_process_name(), phase, shard)


def _fail(error: Exception, _index: int, _value: Any) -> Any:
    raise error


def _run_task(batch: Any, stage: Stage, retries: RetryPolicy | None) -> Any:
    if stage.setup is not None:
        stage.setup()
    return _run_row(stage, retries, lambda index, value: stage.target(index, value, *stage.arguments), batch)


def _run_row(stage: Stage, retries: RetryPolicy | None, function: StageFunction, batch: Any) -> Any:
    """Run one stage on a table of one row. An error becomes data. A shard that has already failed passes through."""
    import pyarrow as pa

    (row,) = batch.to_pylist()
    shard, value, failure = row["shard"], b"", row["failure"]
    if not failure:
        try:
            value = run_stage(stage, retries, functools.partial(_pickled, function), shard, row["value"])
        except QTuneError as error:
            failure = pickle.dumps(error)
    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "value": pa.array([value], pa.large_binary()),
            "failure": pa.array([failure], pa.large_binary()),
        }
    )


def _pickled(function: StageFunction, shard: int, value: bytes) -> bytes:
    return pickle.dumps(function(shard, pickle.loads(value)))  # noqa: S301 - from this job's driver or a stage


def _configure_ray_data() -> None:
    """Disable Ray Data's progress bars and logs, since the job has its own progress, and its limit of waiting.

    By default Ray Data ends an execution in which no block moves for half an hour. A job waits longer than that for
    nodes, for the actors of another job, for a download of weights, or for the first shard of a slow pool.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    context.execution_no_progress_timeout_s = -1
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_line(error: BaseException) -> str:
    """Return an error as one line. Of a worker's error this is its cause, which Ray prints last."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "RayTaskError" in type(error).__name__ else lines[0]
