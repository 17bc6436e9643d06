"""Specs that ask for more than any machine has are refused by a real server, at once and with the field's name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests.api.servers import scripted, serving, settings

TOO_MUCH: dict[str, dict[str, Any]] = {
    "limits.stop_grace_s": {"limits": {"stop_grace_s": 1e9}},
    "limits.max_shard_attempts": {"limits": {"max_shard_attempts": 10**18}},
    "engine.num_actors.1": {"engine": {"num_actors": "1-1000000000"}},
    "engine.tensor_parallel_size": {"engine": {"tensor_parallel_size": 10**9}},
    "engine.logits_bytes": {"engine": {"logits_bytes": 10**30}},
    "model.max_model_len": {"model": {"name": "succeed", "max_model_len": 10**12}},
    "model.name": {"model": {"name": "a" * 100_000}},
    "prune.seed": {"prune": {"seed": 1 << 63}},
    "input.paths": {"input": {"paths": ["dataset://x"] * 15_000}},
    "input.paths.0": {"input": {"paths": ["a" * 500_000]}},
    "from_scores": {"from_scores": "a" * 500_000},
}


@pytest.mark.parametrize("path", ["/api/v1/jobs", "/api/v1/preview"])
def test_a_spec_out_of_bounds_is_refused(path: str, tmp_path: Path) -> None:
    """422 with the field, in less time than a look at its paths would take; nothing is queued."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        good = {"input": {"paths": [str(tmp_path / "inputs" / "a.jsonl")]}, "model": {"name": "succeed"}}
        for field, changes in TOO_MUCH.items():
            began = time.monotonic()
            answer = client.post(path, json={**good, **changes})
            assert time.monotonic() - began < 2, field
            assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request"), (field, answer.text[:300])
            assert [error["field"] for error in answer.json()["errors"]] == [field]
        assert client.get("/api/v1/jobs").json()["jobs"] == []
