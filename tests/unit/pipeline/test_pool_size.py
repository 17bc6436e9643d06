"""How the scoring pool is sized."""

from __future__ import annotations

import os

import pytest

from qtune_service.config import EngineSpec
from qtune_service.pipeline.ray_cluster import Cluster, Pool, size_pool


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


def test_cpu_threads_are_all_cores_here_and_the_reserved_ones_on_a_cluster() -> None:
    """One actor on one machine uses every core; on a cluster an actor uses what it reserved."""
    spec = EngineSpec(cpus_per_actor=3)
    cores = os.cpu_count() or 1
    here = size_pool(EngineSpec(), Cluster({}, is_local=True))
    assert here == Pool(1, 1, 1, 0.0, threads=cores)
    assert size_pool(spec, Cluster({}, is_local=False)).threads == 3
