"""The benchmark of scale measures what it says: inputs of the promised size and kind, and a job that really runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from benchmarks.scale import engine, material
from benchmarks.scale.tail import RULES, Cluster, Simulation
from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample
from tests.jobs import REPO


def test_inputs_are_the_same_every_time_and_all_different(tmp_path: Path) -> None:
    """Half chats, half pairs; one huge file repeats a block."""
    texts = []
    for name in "ab":
        paths = material.write_short(tmp_path / name, 101)
        texts.append([path.read_text() for path in paths])
    assert texts[0] == texts[1]
    chats, pairs = ([json.loads(line) for line in text.splitlines()] for text in texts[0])
    assert (len(chats), len(pairs)) == (51, 50)
    assert len({record["messages"][1]["content"] for record in chats}) == 51
    assert list(pairs[0]) == ["id", "prompt", "completion"]
    material.write_mixed(tmp_path / "mixed.jsonl", 60)
    words = [line.count(" ") for line in (tmp_path / "mixed.jsonl").read_text().splitlines()]
    assert min(words) < 30
    assert max(words) > 2000


def test_the_engine_scores_each_trained_token() -> None:
    """By a hash of the token and the one before it, the same however samples are grouped."""
    scorer = engine.at_once(ModelSpec(name="m"), EngineSpec())
    rng = np.random.default_rng(0)
    samples = [
        Sample(rng.integers(0, 99, n, dtype=np.int32), (rng.random(n) < p).astype(np.int8))
        for n, p in ((5, 1), (3, 0), (40, 0.5), (2, 1))
    ]
    together = scorer.score(samples)
    for sample, scores in zip(samples, together, strict=True):
        assert len(scores.nll) == len(scores.entropy) == int(sample.loss_mask[1:].sum())
        alone = scorer.score([sample])[0]
        assert np.array_equal(alone.nll, scores.nll)
        assert ((scores.nll >= 0) & (scores.nll <= 8)).all()
    assert together[2].nll.std() > 1


def test_a_small_run_prints_its_tables(tmp_path: Path) -> None:
    """Command, factory in the actor, memory by process and figures by stage, over a few hundred records."""
    command = [sys.executable, "-m", "benchmarks.scale", "--sizes", "300", "--work", str(tmp_path)]
    command += ["--json", str(tmp_path / "f.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO, timeout=200)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "f.json").read_text())["sizes"]
    assert "| 300 |" in done.stdout
    assert all(figures["seconds"][name] > 0 for name in ("plan", "score", "prune"))
    assert figures["driver_rss_bytes"] > figures["driver_unique_bytes"] > 0
    assert figures["worker_unique_bytes"] > 0
    assert figures["performance"]["tail_s"] >= 0
    manifest = json.loads((tmp_path / "out-300" / "manifest.json").read_text())
    assert manifest["spec"]["engine"]["name"] == "benchmarks.scale.engine:at_once"
    assert manifest["engine"]["name"] == "hash"


def test_the_simulated_tail_of_a_large_job() -> None:
    """64 actors, 5,100 shards, 5% losses: idle actors wait for less than 3% of the job, and waited for more before."""
    tails = {rule.name: Simulation(Cluster(), rule, seed=0).run() for rule in (RULES[0], RULES[3])}
    before, after = (job.tail for job in tails.values())
    assert all(job.lost > 100 for job in tails.values())
    assert after < 0.03 < before


def test_a_simulated_job_takes_the_time_of_its_work() -> None:
    """Without losses all actors score all the time, until the last shards."""
    cluster = Cluster(actors=4, shards=400, shard_s=10, spread=0, losses=0)
    job = Simulation(cluster, RULES[3], seed=0).run()
    assert job.now == 1000
    assert job.tail == 0
