"""The benchmark of scale measures what it says: inputs of the promised size and kind, and a job that really runs."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    """Import the benchmark's parts by name, and forget them afterwards."""
    sys.path.insert(0, str(BENCHMARKS))
    yield lambda name: importlib.import_module(f"at_scale.{name}")
    sys.path.remove(str(BENCHMARKS))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("at_scale", "side_by_side")]:
        del sys.modules[name]


def test_inputs_are_the_same_every_time_and_all_different(bench: Any, tmp_path: Path) -> None:
    """Half chats, half pairs; one huge file repeats a block."""
    material = bench("material")
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


def test_the_engine_scores_each_trained_token(bench: Any) -> None:
    """By a hash of the token and the one before it, the same however samples are grouped."""
    scorer = bench("engine").at_once(ModelSpec(name="m"), EngineSpec())
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
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--sizes", "300", "--work", str(tmp_path)]
    command += ["--json", str(tmp_path / "f.json")]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=200)
    assert done.returncode == 0, done.stderr
    (figures,) = json.loads((tmp_path / "f.json").read_text())["sizes"]
    assert "| 300 |" in done.stdout
    assert all(figures["seconds"][name] > 0 for name in ("plan", "score", "prune"))
    assert figures["driver_rss_bytes"] > figures["driver_unique_bytes"] > 0
    assert figures["worker_unique_bytes"] > 0
    assert figures["performance"]["tail_s"] >= 0
    manifest = json.loads((tmp_path / "out-300" / "manifest.json").read_text())
    assert manifest["spec"]["engine"]["name"] == "at_scale.engine:at_once"
    assert manifest["engine"]["name"] == "hash"
