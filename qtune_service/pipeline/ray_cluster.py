"""Ray at the edge: start or join a cluster, size the actor pool, stream shards through stages.

Two rules keep the rest of the pipeline plain:

- What travels is always one shard: its index and a payload of bytes. Ray Data may group rows into blocks as it
  likes; that never changes what a shard is.
- A stage never raises inside Ray. It returns the error as data, and `stream` raises it on the driver as the error
  it was, instead of a stack of Ray frames. Under a guard (supervision.py) a shard that fails is tried again, and what
  fails for good arrives as a failed shard beside the others.
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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, QTuneError, ShardFailedError
from qtune_service.pipeline.retries import Guard, StoppedError

StageFunction: TypeAlias = Callable[[int, bytes], bytes]
"""What a stage does to one shard: (index, payload) -> payload."""


REACH_S = 10
HEAD_ASKED_S, HEAD_LOST_S = 5.0, 60.0
_lost, _left = threading.Event(), threading.Event()
"""Of the cluster that this process is connected to: its head is gone; this process has left it."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
SHARDS_PER_TASK = 64
"""So many shards make it worth to start another process for light work."""
LIGHT_CPUS = 0.5
"""CPUs of a task beside the engine. Unlike the actor's, or Ray Data would fuse encoding into the actor."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a stream: a function run as tasks, or a class whose objects are the actors of a pool."""

    name: str
    target: Callable[..., Any]
    """Tasks: called with (index, payload, *arguments). Pool: called with (*arguments), gives a StageFunction."""
    arguments: tuple[Any, ...] = ()
    num_cpus: float = 1
    num_gpus: float = 0
    pool: tuple[int, int | None] | None = None
    """Actors, at least and at most, None being as many as find room; without a pool it runs tasks."""
    max_tasks: int | None = None
    """Tasks at a time; None leaves it to the cluster's CPUs."""
    setup: Callable[[], None] | None = None
    """Called in a worker process before its task; what is done once a process remembers that itself."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that the processes of a pool start with."""
    is_closing: bool = False
    """Goes on while the job stops: it saves what others have done."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A shard that came out of a stream, or the reason why it did not get through."""

    shard: int
    payload: bytes
    problem: ShardFailedError | StoppedError | None = None


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a job runs on."""

    resources: Mapping[str, float]
    is_local: bool
    """Started here, for this job alone."""

    def max_tasks(self, num_shards: int, shards_per_task: int = SHARDS_PER_TASK) -> int | None:
        """Tasks of a stage at a time. On one machine few for a small job: starting a process costs seconds of CPU."""
        cores = os.cpu_count() or 1
        return max(1, min(cores, num_shards // shards_per_task), cores // 2) if self.is_local else None


@dataclass(frozen=True, slots=True)
class Pool:
    """The scoring actors: how many, and what each one reserves."""

    min_actors: int
    max_actors: int | None
    """None: as many as find room, those on nodes that join later too."""
    cpus: float
    gpus: float
    threads: int
    """CPU threads of one actor's engine."""


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

    # Ray Data divides CPUs among stages. With so many all of `max_tasks` run beside an engine, and those bound them.
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
    _quieten_ray_data()
    return Cluster(ray.cluster_resources(), is_local=address is None)


def _check_reachable(address: str) -> None:
    """Knock first: Ray itself waits for minutes where nobody answers."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_S).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "Check --ray-address / RAY_ADDRESS: it is HOST:PORT of the head, as `ray start --head` prints it.",
        ) from error


def watch_head(lost: Callable[[EngineError], None]) -> None:
    """Call `lost`, from a thread, once the head node has not answered for HEAD_LOST_S. Ray itself waits without end."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    left, is_gone = _left, _lost  # of this connection, whatever the process joins later

    def watch() -> None:
        answered_s = time.monotonic()
        while time.monotonic() - answered_s < HEAD_LOST_S:
            if left.wait(HEAD_ASKED_S):
                return
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=REACH_S):
                answered_s = time.monotonic()
        is_gone.set()
        lost(
            EngineError(
                f"the head node of the Ray cluster at {address} has not answered for {HEAD_LOST_S:.0f} s",
                "Finished shards are safe: run the same command again to go on, on this cluster or on another one.",
            )
        )

    threading.Thread(target=watch, daemon=True, name="head").start()


def is_lost() -> bool:
    """Whether the head node is gone. Ray then cannot be left in an orderly way, and hangs where one tries."""
    return _lost.is_set()


def node_id() -> str:
    """The Ray node that this process runs on, shortened; `here` outside of Ray."""
    import ray

    return str(ray.get_runtime_context().get_node_id())[:12] if ray.is_initialized() else "here"


def disconnect() -> None:
    """Leave the cluster, if one was joined; ends it if it was started here."""
    if "ray" not in sys.modules:
        return
    import ray

    _left.set()
    if not is_lost():
        ray.shutdown()


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
    reserved = max(1, math.floor(spec.cpus_per_actor))
    # On this machine alone the actors may share all cores; on a cluster each has what it reserved.
    threads = reserved if gpus or not cluster.is_local else max(reserved, (os.cpu_count() or 1) // (high or 1))
    return Pool(low, high, spec.cpus_per_actor, gpus, threads)


def stream(shards: Iterable[tuple[int, bytes]], *stages: Stage, guard: Guard | None = None) -> Iterator[Arrival]:
    """Send (index, payload) through the stages with Ray Data and yield shards as they come out, in any order.

    Raises the first error that concerns the whole job as the error it was; without a guard every error does.
    """
    import ray

    items = [{"shard": index, "payload": payload, "failure": b""} for index, payload in shards]
    if not items:
        return
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    for stage in stages:
        dataset = _add(dataset, stage, guard)
    try:
        for row in dataset.iter_rows():
            error = pickle.loads(row["failure"]) if row["failure"] else None  # noqa: S301 - from `_guarded` of this job
            if error is not None and not isinstance(error, (ShardFailedError, StoppedError)):
                raise error
            yield Arrival(row["shard"], row["payload"], error)
    except ray.exceptions.RayError as error:
        raise EngineError(
            f"a worker was lost: {_first_line(error)}",
            "Finished shards are safe: run the same command again to go on. It may have run out of memory.",
        ) from error


def run_here(items: Iterable[tuple[int, bytes]], stage: Stage) -> Iterator[Arrival]:
    """Do a stage of tasks in this process, one shard after the other."""
    for shard, payload in items:
        yield Arrival(shard, stage.target(shard, payload, *stage.arguments))


def _add(dataset: Any, stage: Stage, guard: Guard | None) -> Any:
    """Append one stage. Batches of one row: a shard is never split or joined with another."""
    import ray

    common: dict[str, Any] = {
        "batch_size": 1,
        "batch_format": "pyarrow",
        "zero_copy_batch": True,
        "num_cpus": stage.num_cpus,
        "num_gpus": stage.num_gpus or None,
    }
    if stage.pool is None:
        tasks = ray.data.TaskPoolStrategy(size=stage.max_tasks)
        return dataset.map_batches(_run_task, fn_args=(stage, guard), compute=tasks, **common)
    pool = ray.data.ActorPoolStrategy(min_size=stage.pool[0], max_size=stage.pool[1])
    if stage.environment:
        common["runtime_env"] = {"env_vars": dict(stage.environment)}
    return dataset.map_batches(_StageActor, fn_constructor_args=(stage, guard), compute=pool, **common)


class _StageActor:
    """An actor of a pool. A constructor that fails is remembered and told with the first shard."""

    def __init__(self, stage: Stage, guard: Guard | None) -> None:
        self._stage, self._guard = stage, guard
        try:
            self._call = stage.target(*stage.arguments)
        except Exception as error:  # noqa: BLE001 - told to the driver by `_guarded`
            told = guard.give_up_or_retire(stage.name, error) if guard else error
            self._call, self._guard = functools.partial(_fail, told), None

    def __call__(self, batch: Any) -> Any:
        return _guarded(self._stage, self._guard, self._call, batch)


def _fail(error: Exception, _index: int, _payload: bytes) -> bytes:
    raise error


def _run_task(batch: Any, stage: Stage, guard: Guard | None) -> Any:
    if stage.setup is not None:
        stage.setup()
    return _guarded(stage, guard, lambda index, payload: stage.target(index, payload, *stage.arguments), batch)


def _guarded(stage: Stage, guard: Guard | None, call: StageFunction, batch: Any) -> Any:
    """Run one stage on a one-row table. An error becomes data; a shard that already failed passes through."""
    import pyarrow as pa

    (row,) = batch.to_pylist()
    shard, payload, failure = row["shard"], b"", row["failure"]
    if not failure:
        work = functools.partial(call, shard, row["payload"])
        try:
            payload = guard.run(stage.name, shard, work, closing=stage.is_closing) if guard else work()
        except QTuneError as error:
            failure = pickle.dumps(error)
        except Exception as error:  # noqa: BLE001 - an edge: told on the driver with its place, not as a stack of Ray
            failure = pickle.dumps(EngineError(f"{stage.name}, shard {shard}: {type(error).__name__}: {error}"))
    return pa.table(
        {
            "shard": pa.array([shard], pa.int64()),
            "payload": pa.array([payload], pa.large_binary()),
            "failure": pa.array([failure], pa.large_binary()),
        }
    )


def _quieten_ray_data() -> None:
    """The job's log carries our progress; Ray Data's own goes."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_line(error: BaseException) -> str:
    """An error in one line; of what a worker raised, its cause, which Ray prints last."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "RayTaskError" in type(error).__name__ else lines[0]
