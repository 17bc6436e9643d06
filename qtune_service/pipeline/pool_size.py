"""Fit the scoring pool and its actors to the nodes of a cluster, and check that they fit at all.

An engine of vLLM runs on `tensor_parallel_size` times `pipeline_parallel_size` GPUs. If the largest node has as many,
the actor reserves them there. If not, the actor starts in a placement group with one bundle for each GPU, and vLLM's
Ray backend starts a worker in each bundle, as Ray's own LLM stage does. Tensor parallel workers exchange data in every
layer, so they must fit on one node, unless the job chooses the Ray backend itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, SpecError
from qtune_service.pipeline.executor import Pool, Stage, size_local_pool

BACKEND = "distributed_executor_backend"


@dataclass(frozen=True, slots=True)
class ActorShape:
    """The GPUs of one scoring actor."""

    gpus: float
    """GPUs that the actor reserves on its node."""
    bundles: int = 0
    """Bundles of its placement group, each with a GPU. 0: it has none."""

    @property
    def devices(self) -> float:
        """Return the GPUs that it takes from the cluster."""
        return self.bundles or self.gpus


def actor_shape(spec: EngineSpec, resources: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> ActorShape:
    """Return the shape of a scoring actor.

    resources: those of the cluster. nodes: those of each node. Nothing is checked while no node has a GPU, since such
    nodes may join later. Raise SpecError for contradictions, and EngineError where no node is large enough.
    """
    is_vllm, num_gpus, asked = spec.name in ("auto", "vllm"), spec.gpus_per_engine, spec.gpus_per_actor
    if is_vllm:
        _check_agrees(spec)
    gpus = asked if asked is not None else float(num_gpus) if resources.get("GPU", 0) else 0.0
    backend = spec.vllm.get(BACKEND)
    if backend == "ray" and gpus > 1 and is_vllm:
        return ActorShape(0.0, num_gpus)
    largest = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    if not largest or gpus <= largest:
        return ActorShape(gpus)
    if not is_vllm or spec.tensor_parallel_size > largest or backend is not None:
        raise _too_large(spec, gpus, int(largest))
    return ActorShape(0.0, num_gpus)


def _check_agrees(spec: EngineSpec) -> None:
    """Raise SpecError where an actor would have other GPUs than its engine uses. Several actors may share a GPU.

    An engine of the user's own may use any number.
    """
    asked, num_gpus = spec.gpus_per_actor, spec.gpus_per_engine
    if not asked or asked == num_gpus or (num_gpus == 1 and asked < 1) or ":" in spec.name:
        return
    raise SpecError(
        f"engine.gpus_per_actor is {asked:g}, and an engine uses {num_gpus} "
        f"(tensor_parallel_size {spec.tensor_parallel_size} x pipeline_parallel_size "
        f"{num_gpus // spec.tensor_parallel_size})",
        "Leave gpus_per_actor out.",
    )


def _too_large(spec: EngineSpec, gpus: float, largest: int) -> EngineError:
    needs = f"an engine needs {gpus:g} GPUs on one node, and the largest node of the cluster has {largest}"
    if spec.name not in ("auto", "vllm") or spec.tensor_parallel_size <= largest:
        return EngineError(needs, f"Set engine.gpus_per_actor to {largest} or less, or add larger nodes.")
    stages = -(-spec.gpus_per_engine // largest)
    return EngineError(
        f"tensor_parallel_size {spec.tensor_parallel_size}: {needs}",
        f"Set tensor_parallel_size to {largest} and engine.vllm.pipeline_parallel_size to {stages}, which spreads an "
        f"engine over {stages} nodes, or add nodes with {spec.tensor_parallel_size} GPUs.",
    )


def bundles_of(shape: ActorShape, cpus: float) -> tuple[dict[str, float], ...]:
    """Return the bundles of an actor's placement group.

    vLLM's workers take the GPU of a bundle and no CPU, so the first bundle holds the actor as well.
    """
    if not shape.bundles:
        return ()
    return ({"GPU": 1.0, "CPU": max(1.0, cpus)}, *({"GPU": 1.0, "CPU": 1.0} for _ in range(shape.bundles - 1)))


@dataclass(frozen=True, slots=True)
class Cluster:
    """The resources that a job runs on."""

    resources: Mapping[str, float]
    is_local: bool
    """Whether this process started it for this job alone."""
    nodes: tuple[Mapping[str, float], ...] = ()
    """Resources of each node."""

    def max_tasks(self, num_shards: int, shards_per_task: int) -> int | None:
        """Return how many tasks of a stage run at a time. None leaves it to the cluster's CPUs.

        On one machine a small job gets few: starting a process costs seconds of CPU.
        """
        cores = os.cpu_count() or 1
        return max(1, min(cores, num_shards // shards_per_task), cores // 2) if self.is_local else None


def size_pool(spec: EngineSpec, cluster: Cluster) -> Pool:
    """Fit the scoring pool to the cluster's resources: an actor for each GPU, now and later, or one on CPUs.

    A pool of placement groups does not grow: Ray Data does not see what its actors need.
    """
    shape = actor_shape(spec, cluster.resources, cluster.nodes)
    gpus, bundles = shape.gpus, bundles_of(shape, spec.cpus_per_actor)
    high: int | None
    if spec.num_actors is not None:
        low, high = spec.num_actors
    else:
        low = max(1, math.floor(cluster.resources.get("GPU", 0.0) / shape.devices)) if shape.devices else 1
        high = low if cluster.is_local or bundles or not gpus else None
    # On this machine alone the actors may share all cores; on a cluster each has the cores that it reserved.
    reserved = max(1, math.floor(spec.cpus_per_actor))
    threads = reserved if gpus or not cluster.is_local else size_local_pool(spec, actors=high or 1).threads
    return Pool(low, high, spec.cpus_per_actor, gpus, threads, bundles)


def max_tasks(cluster: Cluster, stages: Sequence[Stage], stage: Stage, num_shards: int) -> int | None:
    """Return how many tasks of a stage may run at a time, given the other stages of its job."""
    limit = cluster.max_tasks(num_shards, stage.shards_per_task)
    pool = next((other.pool for other in stages if other.pool is not None), None)
    if limit is None and pool is not None and not pool.gpus and not pool.bundles:
        return pool.max_actors  # Ray Data would grant unbounded tasks the CPUs that the pool needs to grow
    return limit
