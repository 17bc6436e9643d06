"""A cluster whose nodes have different engines: one class of engines scores the job."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from tests.finished_outputs import DrawnScorer
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, start
from tests.nodes import ray_nodes

VERSION = "QTUNE_TEST_ENGINE_VERSION"
"""Variable of a node: the version of the engine there."""
PAUSE_S = 0.5


class NodeScorer(DrawnScorer):
    """An engine of the version that its node has."""

    def __init__(self, model: ModelSpec, engine: EngineSpec) -> None:
        super().__init__(model, engine)
        self.info = replace(DrawnScorer.info, version=os.environ[VERSION])

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Score slowly, so that both nodes have a share."""
        time.sleep(PAUSE_S)
        return super().score(samples)


def test_nodes_with_other_engines_score_nothing(tmp_path: Path) -> None:
    """Shards of one class of engines count: the job ends by them, or stops and names the node and its engine."""
    job = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 200, "shard_bytes": 4096},
        "model": {"name": DEMO_MODEL, "dtype": "float32"},
        "engine": {"name": "tests.ray.test_engine_mix:NodeScorer", "num_actors": 2, "cpus_per_actor": 2.5},
        "output": {"path": str(tmp_path / "out")},
    }
    (tmp_path / "job.json").write_text(json.dumps(job))
    with ray_nodes(env={"PYTHONPATH": str(REPO), VERSION: "0.32.1"}, has_dashboard=False) as nodes:
        nodes.start_head(4)
        nodes.env[VERSION] = "0.33.0"
        nodes.join(4)
        env = {name: value for name, value in nodes.env.items() if name.startswith("RAY_")}
        process = start("run", tmp_path / "job.json", "--ray-address", nodes.address, env=env)
        text, _ = process.communicate(timeout=400)
    if process.returncode == 0:
        found = {json.loads((tmp_path / "out" / "manifest.json").read_text())["engine"]["version"]}
    else:
        assert "differ in version" in text
        assert "Install drawn" in text
        markers = (tmp_path / "out" / "_qtune" / "scored").glob("*.json")
        found = {json.loads(marker.read_text())["engine"]["version"] for marker in markers}
    assert len(found) <= 1, text
