"""Fit a scoring actor to the nodes of a cluster, and check that it fits at all.

An engine of vLLM runs on `tensor_parallel_size` times `pipeline_parallel_size` GPUs. If the largest node has as many,
the actor reserves them there. If not, the actor starts in a placement group with one bundle for each GPU, and vLLM's
Ray backend starts a worker in each bundle, as Ray's own LLM stage does. Tensor parallel workers exchange data in every
layer, so they must fit on one node, unless the job chooses the Ray backend itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, SpecError

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
    """Raise SpecError where an actor would have other GPUs than its engine uses. Several actors may share a GPU."""
    asked, num_gpus = spec.gpus_per_actor, spec.gpus_per_engine
    if not asked or asked == num_gpus or (num_gpus == 1 and asked < 1):
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
