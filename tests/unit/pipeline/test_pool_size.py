"""How the scoring pool is sized."""

from __future__ import annotations

import os
from typing import Any

import pytest

from qtune_service.config import EngineSpec
from qtune_service.errors import EngineError, SpecError
from qtune_service.pipeline.executor import Pool
from qtune_service.pipeline.pool_size import Cluster, size_pool


@pytest.mark.parametrize(
    ("spec", "gpus", "pool"),
    [
        ({}, 0, (1, 1, 0.0)),
        ({}, 4, (4, None, 1.0)),
        ({"tensor_parallel_size": 2}, 8, (4, None, 2.0)),
        ({"num_actors": "1-6"}, 8, (1, 6, 1.0)),
        ({"gpus_per_actor": 0.5}, 2, (4, None, 0.5)),
        ({"gpus_per_actor": 0}, 8, (1, 1, 0.0)),
    ],
)
def test_pool_fits_the_cluster(spec: dict[str, object], gpus: int, pool: tuple[int, int | None, float]) -> None:
    """By default one actor a GPU, later ones too, or one on CPUs; what is asked for wins."""
    sized = size_pool(EngineSpec.model_validate(spec), Cluster({"CPU": 64.0, "GPU": float(gpus)}, is_local=False))
    assert (sized.min_actors, sized.max_actors, sized.gpus) == pool


def cluster(*gpus: int) -> Cluster:
    """Return a cluster of nodes with so many GPUs each."""
    nodes = tuple({"CPU": 64.0, **({"GPU": float(each)} if each else {})} for each in gpus)
    return Cluster({"CPU": 64.0 * len(gpus), "GPU": float(sum(gpus))}, is_local=False, nodes=nodes)


def engine(tensor: int = 1, pipeline: int = 1, **more: Any) -> EngineSpec:
    """Return an engine that is parallel in two ways."""
    vllm = {"pipeline_parallel_size": pipeline, **more.pop("vllm", {})}
    return EngineSpec.model_validate({"tensor_parallel_size": tensor, "vllm": vllm, **more})


@pytest.mark.parametrize(
    ("tensor", "pipeline", "gpus", "pool"),
    [
        (4, 1, (4, 4), (2, None, 4.0, 0)),  # an actor on each node
        (2, 2, (8, 8), (4, None, 4.0, 0)),  # both kinds on one node
        (4, 2, (4, 4, 0), (1, 1, 0.0, 8)),  # an engine over two nodes
        (4, 4, (4,) * 9, (2, 2, 0.0, 16)),
        (8, 1, (0, 0), (1, 1, 0.0, 0)),  # no GPU node is up yet: an engine on CPUs, as before
    ],
)
def test_engines_are_placed_by_the_largest_node(
    tensor: int, pipeline: int, gpus: tuple[int, ...], pool: tuple[int, int | None, float, int]
) -> None:
    """An engine that fits on a node reserves its GPUs there. A larger one gets a bundle for each GPU."""
    sized = size_pool(engine(tensor, pipeline), cluster(*gpus))
    assert (sized.min_actors, sized.max_actors, sized.gpus, len(sized.bundles)) == pool
    assert sized.engine_arguments == ({"distributed_executor_backend": "ray"} if sized.bundles else {})
    assert all(bundle == {"GPU": 1.0, "CPU": 1.0} for bundle in sized.bundles)


def test_the_first_bundle_holds_the_actor() -> None:
    """An actor that reserves CPUs finds them beside its first worker."""
    sized = size_pool(engine(4, 2, cpus_per_actor=6), cluster(4, 4))
    assert [bundle["CPU"] for bundle in sized.bundles] == [6.0, *[1.0] * 7]


def test_the_backend_of_the_job_wins() -> None:
    """A job that chooses Ray's backend gets bundles on one node as well, and may spread tensor parallel workers."""
    by_ray = engine(2, vllm={"distributed_executor_backend": "ray"})
    assert size_pool(by_ray, cluster(4)).bundles == ({"GPU": 1.0, "CPU": 1.0},) * 2
    assert size_pool(by_ray, cluster(0)).bundles == ()
    assert size_pool(engine(8, vllm={"distributed_executor_backend": "ray"}), cluster(4, 4)).gpus == 0


def test_an_engine_that_fits_on_no_node_is_refused_with_the_remedy() -> None:
    """Tensor parallel workers need one node. The error says how many nodes would hold the engine."""
    with pytest.raises(
        EngineError, match=r"needs 8 GPUs on one node, and the largest node of the cluster has 4"
    ) as caught:
        size_pool(engine(8), cluster(4, 4))
    assert "tensor_parallel_size to 4 and engine.vllm.pipeline_parallel_size to 2" in caught.value.hint
    for spec in (engine(2, 4, vllm={"distributed_executor_backend": "mp"}), EngineSpec(name="m:f", gpus_per_actor=8)):
        with pytest.raises(EngineError, match="needs 8 GPUs on one node"):
            size_pool(spec, cluster(4, 4))


@pytest.mark.parametrize(("asked", "tensor", "pipeline"), [(2, 4, 1), (4, 4, 2), (0.5, 2, 1), (2, 1, 1)])
def test_gpus_that_contradict_the_engine_are_refused(asked: float, tensor: int, pipeline: int) -> None:
    """An actor has as many GPUs as its engine uses, or a part of one that actors share."""
    with pytest.raises(SpecError, match=rf"gpus_per_actor is {asked:g}, and an engine uses {tensor * pipeline}"):
        size_pool(engine(tensor, pipeline, gpus_per_actor=asked), cluster(8, 8))
    assert size_pool(engine(4, 2, gpus_per_actor=8), cluster(8)).gpus == 8
    assert size_pool(engine(gpus_per_actor=0.25), cluster(1)).min_actors == 4
    assert size_pool(engine(2, gpus_per_actor=0), cluster(8)).gpus == 0


def test_cpu_threads_are_all_cores_here_and_the_reserved_ones_on_a_cluster() -> None:
    """One actor on one machine uses every core; on a cluster an actor uses what it reserved."""
    spec = EngineSpec(cpus_per_actor=3)
    cores = os.cpu_count() or 1
    here = size_pool(EngineSpec(), Cluster({}, is_local=True))
    assert here == Pool(1, 1, 1, 0.0, threads=cores)
    assert size_pool(spec, Cluster({}, is_local=False)).threads == 3
