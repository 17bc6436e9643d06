"""The Ray executor: stream shards through stages with Ray Data.

Values travel as pickled bytes, one shard a row, and only this module pickles them. Ray Data may group rows into blocks,
but never splits or joins shards. Arrow tables inside a value are pickled as buffers, not item by item.

A stage never raises inside Ray. It returns the error as data, and `run` raises it on the driver as the original error
instead of a stack of Ray frames. With a retry policy (retries.py) a shard that fails permanently is yielded as failed
and the others continue, and shards of actors that are lost or fail go to others (ray_pool.py).
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, QTuneError, ShardFailedError
from qtune_service.pipeline.cluster_state import ClusterState
from qtune_service.pipeline.dispatch import START_FAILURES
from qtune_service.pipeline.executor import (
    Executor,
    LocalExecutor,
    Pool,
    Stage,
    StageFunction,
    StageResult,
    ignore_problems,
    run_stage,
)
from qtune_service.pipeline.pool_size import Cluster, max_tasks, size_pool
from qtune_service.pipeline.ray_cluster import look_at_cluster
from qtune_service.pipeline.ray_connection import connect, first_line, is_lost, leave, watch_head
from qtune_service.pipeline.ray_pool import (
    ActorProcess,
    ExecutionHooks,
    PoolLostError,
    RaySupervisor,
    actor_options,
    end_execution,
    ray_process_name,
    remove_placement_groups,
    row_table,
    source,
    watch,
)
from qtune_service.pipeline.retries import PassedOnError, RetryPolicy, StoppedError, Supervisor
from qtune_service.pipeline.shutdown import Stop

CPU_NODES = "QTUNE_CPU_NODES"
"""Environment variable of drivers: the name of a Ray resource of the nodes for CPU work, such as `cpu_node`."""
CPU_NODE_SHARE = 0.001
"""How much of it a task takes: a node with 1 of it runs as many tasks as its CPUs allow."""
TASKS_IN_FLIGHT = 2
"""Shards that Ray Data assigns to an actor at a time."""
GROW_AT, SHRINK_AT = 1.75, 0.5
"""Shards in flight for each actor from which a pool grows, and up to which it shrinks."""
SWITCH_S = 1e-4
"""Python's interval between threads in an actor that prepares shards beside its engine. The engine's thread releases
the interpreter in each call of torch. With Python's 5 ms a thread that prepares would hold it that long each time."""


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
            _configure_ray_data()
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

    def cluster_state(self) -> ClusterState | None:
        """Return the resources of the cluster and who uses them, or None before `start`."""
        return None if self._cluster is None or is_lost() else look_at_cluster(os.environ.get(CPU_NODES, ""))

    def retry_policy(self, max_attempts: int, max_failed_actors: int | None = None) -> RetryPolicy:
        """Start a supervisor on the driver's node, where it lives as long as the driver's cluster."""
        import ray

        options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": _here()}
        start_failures = 1 if self._started().is_local else START_FAILURES
        supervisor = ray.remote(Supervisor).options(**options).remote(start_failures)
        return RetryPolicy(RaySupervisor(supervisor), max_attempts, max_failed_actors=max_failed_actors)

    def run(
        self,
        items: Iterable[tuple[int, Any]],
        *stages: Stage,
        retries: RetryPolicy | None = None,
        on_problems: Callable[[tuple[str, ...]], None] = ignore_problems,
    ) -> Iterator[StageResult]:
        """Send (index, value) through the stages with Ray Data and yield shards as they come out."""
        import ray

        values = {index: pickle.dumps(value) for index, value in items}
        try:
            pool = next((stage for stage in stages if stage.pool is not None), None)
            if not values:
                return
            if pool is not None:
                self._release()
            _scale_by_calls(max(stage.calls_in_flight for stage in stages))
            if retries is not None and pool is not None:
                yield from self._run_pool(values, stages, pool, retries, on_problems)
                return
            rows = [{"shard": index, "value": value, "failure": b""} for index, value in values.items()]
            dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
            yield from _results(self._add_all(dataset, stages, retries, len(rows)))
        except (ray.exceptions.RayError, ray.data.exceptions.ExecutionTimeoutError) as error:
            is_lost_worker = isinstance(error, ray.exceptions.RayError)
            raise EngineError(
                f"{'a worker was lost' if is_lost_worker else 'Ray Data stopped the job'}: {first_line(error)}",
                "Finished shards are safe: run the same command again to continue."
                + (" It may have run out of memory." if is_lost_worker else ""),
            ) from error
        finally:
            remove_placement_groups()

    def _run_pool(
        self,
        values: dict[int, bytes],
        stages: Sequence[Stage],
        stage: Stage,
        retries: RetryPolicy,
        on_problems: Callable[[tuple[str, ...]], None],
    ) -> Iterator[StageResult]:
        """Run a pool whose shards the supervisor hands out, and another one where all its actors were lost."""
        import ray

        assert stage.pool is not None
        compute = ray.data.TaskPoolStrategy(size=1)
        options: dict[str, Any] = {"num_cpus": 0, "compute": compute, "scheduling_strategy": _here()}
        try:
            while values:
                retries.supervisor.call("offer", stage.name, list(values))
                dataset = ray.data.from_items([{"shard": -1}]).map_batches(
                    source, fn_args=(retries.supervisor, dict(values)), batch_size=1, **options
                )
                pool = watch(retries, stage.pool, on_problems)
                try:
                    for result in _results(self._add_all(dataset, stages, retries, len(values)), prefetch=0):
                        if isinstance(result.problem, PassedOnError) or values.pop(result.shard, None) is None:
                            continue  # another actor has the shard, or it has arrived before
                        retries.supervisor.send("arrived", result.shard, result.problem is not None)
                        yield result
                        if not values:
                            break
                except PoolLostError:
                    continue
                finally:
                    pool.close()
        finally:
            retries.supervisor.send("finish")

    def _add_all(self, dataset: Any, stages: Sequence[Stage], retries: RetryPolicy | None, num_shards: int) -> Any:
        for stage in stages:
            dataset = _add(dataset, stage, retries, max_tasks(self._started(), stages, stage, num_shards), num_shards)
        return dataset

    def close(self) -> None:
        """Leave the cluster, which ends it if it was started here."""
        self._cluster, self._reserved = None, []
        if not is_lost():
            end_execution()  # an exit by a signal may have left it running
        leave()

    def _started(self) -> Cluster:
        assert self._cluster is not None, "start() comes first"
        return self._cluster


# --- stages on Ray Data


def _here() -> Any:
    """Return the strategy that prefers this process's node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)


def _results(dataset: Any, prefetch: int = 1) -> Iterator[StageResult]:
    """Run a dataset and yield its rows. Raise the first error that concerns the whole job.

    prefetch: blocks that are held back until the next ones come. 0 for a dataset that has no end of its own.
    """
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=prefetch):
        for row in batch.to_pylist():
            error = pickle.loads(row["failure"]) if row["failure"] else None  # noqa: S301 - from `_run_row`
            if error is not None and not isinstance(error, (ShardFailedError, StoppedError, PassedOnError)):
                raise error
            value = None if error is not None else pickle.loads(row["value"])  # noqa: S301 - from `_run_row`
            yield StageResult(row["shard"], value, error)


def _add(dataset: Any, stage: Stage, retries: RetryPolicy | None, tasks: int | None, num_shards: int) -> Any:
    """Append one stage. Batches have one row: a shard is never split or joined with another."""
    import ray

    common: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "zero_copy_batch": True}
    if (pool := stage.pool) is None:
        common |= {"num_cpus": stage.num_cpus, "compute": ray.data.TaskPoolStrategy(size=tasks)}
        if stage.on_cpu_nodes and (name := os.environ.get(CPU_NODES)):
            common["resources"] = {name: CPU_NODE_SHARE}
        return dataset.map_batches(_run_task, fn_args=(stage, retries), **common)
    size: dict[str, Any] = {
        "min_size": min(pool.min_actors, num_shards),
        "max_size": pool.max_actors and min(pool.max_actors, num_shards),
        "max_tasks_in_flight_per_actor": max(TASKS_IN_FLIGHT, stage.calls_in_flight),
        "enable_true_multi_threading": stage.calls_in_flight > 1,
    }
    if "max_concurrent_calls_per_actor" in inspect.signature(ray.data.ActorPoolStrategy).parameters:
        size["max_concurrent_calls_per_actor"] = stage.calls_in_flight
    else:  # older versions of Ray
        common["max_concurrency"] = stage.calls_in_flight
    common |= {"num_cpus": pool.cpus, "num_gpus": pool.gpus or None, "compute": ray.data.ActorPoolStrategy(**size)}
    if stage.environment:
        common["runtime_env"] = {"env_vars": dict(stage.environment)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray 2.64 removes `ray_remote_args_fn`
        return dataset.map_batches(
            _StageActor,
            fn_constructor_args=(stage, retries),
            ray_remote_args_fn=functools.partial(actor_options, pool.bundles),
            **common,
        )


class _StageActor:
    """An actor of a pool. Its process follows the orders of the supervisor."""

    def __init__(self, stage: Stage, retries: RetryPolicy | None) -> None:
        self._stage, self._retries = stage, retries
        if stage.calls_in_flight > 1:
            sys.setswitchinterval(SWITCH_S)
        self._process = ActorProcess(retries) if retries is not None else None
        try:
            self._function = stage.target(*stage.arguments)
        except Exception as error:
            if self._process is None:
                raise
            self._process.failed(stage.name, error)
        if self._process is not None:
            self._process.started()

    def __call__(self, batch: Any) -> Any:
        shard = batch["shard"][0].as_py()
        if self._process is None or batch["failure"][0].as_py():
            return _run_row(self._stage, self._retries, self._function, batch)
        if not self._process.hold(shard):
            return row_table(shard, b"", pickle.dumps(PassedOnError(f"shard {shard} is scored by another actor")))
        row = _run_row(self._stage, self._retries, self._function, batch)
        failure = row["failure"][0].as_py()
        self._process.release(shard, is_stopped=bool(failure) and isinstance(pickle.loads(failure), StoppedError))  # noqa: S301 - from `_run_row`
        return row


def _run_task(batch: Any, stage: Stage, retries: RetryPolicy | None) -> Any:
    if stage.setup is not None:
        stage.setup()
    return _run_row(stage, retries, lambda index, value: stage.target(index, value, *stage.arguments), batch)


def _run_row(stage: Stage, retries: RetryPolicy | None, function: StageFunction, batch: Any) -> Any:
    """Run one stage on a table of one row. An error becomes data. A shard that has already failed passes through."""
    (row,) = batch.to_pylist()
    shard, value, failure = row["shard"], b"", row["failure"]
    if not failure:
        try:
            value = run_stage(stage, retries, functools.partial(_pickled, function), shard, row["value"])
        except QTuneError as error:
            failure = pickle.dumps(error)
    return row_table(shard, value, failure)


def _pickled(function: StageFunction, shard: int, value: bytes) -> bytes:
    return pickle.dumps(function(shard, pickle.loads(value)))  # noqa: S301 - from this job's driver or a stage


def _configure_ray_data() -> None:
    """Disable Ray Data's progress bars and logs, since the job has its own progress, and its limits.

    By default Ray Data ends an execution in which no block moves for half an hour. A job waits longer than that for
    nodes, for the actors of another job, for a download of weights, or for the first shard of a slow pool. How often
    actors may fail to start is the decision of ray_pool.py. A row is a shard, so each is a block of its own.
    """
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.enable_operator_progress_bars = False
    context.execution_no_progress_timeout_s = -1
    context.max_consecutive_actor_init_deaths = -1
    context.target_max_block_size = 1
    context.custom_execution_callback_classes = [ExecutionHooks]
    for name in ("ray.data", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _scale_by_calls(calls: int) -> None:
    """Let pools whose actors run so many calls at a time grow and shrink as pools whose actors run one.

    Ray Data divides the shards in flight by the calls that the actors can run at a time. It copies these settings when
    a dataset is made.
    """
    import ray.data

    scaling = ray.data.DataContext.get_current().autoscaling_config
    scaling.actor_pool_util_upscaling_threshold = GROW_AT / calls
    scaling.actor_pool_util_downscaling_threshold = SHRINK_AT / calls
