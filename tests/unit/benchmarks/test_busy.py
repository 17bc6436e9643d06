"""The simulated device takes its time, and its engine scores the same in one step and in three."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scale import device
from qtune_service.config import ModelSpec
from qtune_service.samples import Sample


def test_the_device_is_busy_for_each_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call is logged with the time that its tokens take, which is at most the time that passed."""
    monkeypatch.setenv("QTUNE_DEVICE_LOG", str(tmp_path / "log"))
    monkeypatch.setattr(device, "STEP_TOKENS", 20)
    rng = np.random.default_rng(0)
    samples = [Sample(rng.integers(0, 50, 8).astype(np.int32), np.arange(8) >= 4) for _ in range(30)]  # type: ignore[arg-type]
    scorer = device.PlainScorer(ModelSpec(name="none", max_model_len=8))
    at_once = scorer.score(samples)
    prepared = scorer.prepare(samples)
    stepwise = scorer.finish(prepared, scorer.run(prepared)).rows()
    for one, other in zip(at_once, stepwise, strict=True):
        assert np.array_equal(one.nll, other.nll)
        assert np.array_equal(one.entropy, other.entropy)
        assert len(one.nll) == 4
    calls = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [call["busy_s"] for call in calls] == pytest.approx([240 / device.TOKENS_PER_S] * 2)
    assert all(call["busy_s"] <= call["ended_s"] - call["begun_s"] + 1e-6 for call in calls)
