"""Speed over time: few points, evenly spread, however long a job takes."""

from __future__ import annotations

import json
from itertools import pairwise

from qtune_service.pipeline.progress import MAX_POINTS, FileSink, History, Snapshot


def noted(seconds: int) -> History:
    """Return a history that noted progress every second."""
    now = [0.0]
    history = History(clock=lambda: now[0])
    for second in range(seconds):
        now[0] = float(second)
        history.note(second, 10 * second, 10.0)
    return history


def test_a_short_job_has_every_second() -> None:
    """In order, a place a moment in each column."""
    found = noted(5).columns()
    assert found == {
        "at_s": [0.0, 1.0, 2.0, 3.0, 4.0],
        "samples_done": [0, 1, 2, 3, 4],
        "tokens_done": [0, 10, 20, 30, 40],
        "tokens_per_s": [10.0] * 5,
    }


def test_a_day_fits_and_stays_even() -> None:
    """From the beginning to the end, at equal distances but for the last point."""
    times = noted(86_400).columns()["at_s"]
    gaps = {b - a for a, b in pairwise(times[:-1])}
    assert MAX_POINTS / 2 <= len(times) <= MAX_POINTS
    assert times[0] == 0
    assert times[-1] > 86_400 - 2 * max(gaps)
    assert len(gaps) == 1


def test_progress_json_has_it_for_the_scoring_only() -> None:
    """Other stages count shards, not tokens."""
    written: list[bytes] = []
    sink = FileSink(written.append, every_s=0)
    for stage in ("plan", "score", "prune"):
        sink.show(Snapshot(stage, done=1, total=2, tokens_done=7, tokens_per_s=3.5))
    sink.close()
    history = json.loads(written[-1])["history"]
    assert (history["samples_done"], history["tokens_done"], history["tokens_per_s"]) == ([1], [7], [3.5])
