"""The speed of a run is measured by one clock: the driver's."""

from __future__ import annotations

import time

import pytest

from qtune_service.pipeline.score_stage import measure
from qtune_service.pipeline.stages import ScoredMarker

AHEAD_S = 3600.0
"""How far the clock of the second node is ahead."""


def marker(actor: str, *, engine_s: float, clock_error_s: float = 0.0) -> ScoredMarker:
    """Return the marker of a shard whose node has a wrong clock."""
    now_s = time.time() + clock_error_s
    return ScoredMarker(
        read=10,
        scored=10,
        rejected=0,
        reasons={},
        rejected_by_source={},
        rejected_by_category={},
        truncated=0,
        tokens=1000,
        trained_tokens=500,
        engine={"name": "reference", "version": "1"},
        started_at_s=now_s - engine_s,
        engine_s=engine_s,
        actor=actor,
        encode_s=0.5,
        committed_at_s=now_s,
        files=[],
    )


def test_wrong_clocks_of_nodes_change_nothing() -> None:
    """Two actors on two nodes, one of which is an hour ahead: 10 s of work on each, the second ends 2 s later."""
    now_s = time.monotonic()
    markers = {
        0: marker("a:1", engine_s=5),
        1: marker("a:1", engine_s=5),
        2: marker("b:1", engine_s=5, clock_error_s=AHEAD_S),
        3: marker("b:1", engine_s=5, clock_error_s=AHEAD_S),
    }
    found = measure(markers, {0: now_s + 5, 1: now_s + 10, 2: now_s + 7, 3: now_s + 12})
    assert found["score_s"] == pytest.approx(12)
    assert found["tail_s"] == pytest.approx(2)
    assert found["tokens_per_s"] == pytest.approx(4000 / 12, abs=0.1)
    assert found["engine_busy_share"] == pytest.approx(20 / (12 + 10), abs=1e-4)
    assert (found["actors"], found["nodes"]) == (2, 2)


def test_a_run_without_scored_shards_has_no_speed() -> None:
    """All shards of a resumed job may be finished."""
    assert measure({}, {}) == {}
