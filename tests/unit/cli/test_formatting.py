"""Jobs as the terminal shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from qtune_service.cli.formatting import facts_of, progress_of
from qtune_service.wire import JobView

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SENTENCE = "waiting for 8 GPUs (0 of 8), 41 min"


def job(**progress: Any) -> JobView:
    """Return a running job. A server of an earlier version sends no fields about actors."""
    known = {"samples_done": 0, "samples_total": 100, "tokens_done": 0, "tokens_per_s": 0.0, "eta_s": None}
    return JobView.model_validate(
        {
            "id": "1", "name": "a", "status": "running", "stage": "score", "progress": {**known, **progress},
            "counts": {}, "thresholds": {}, "error": None, "created_at": NOW, "started_at": NOW, "finished_at": None,
            "updated_at": NOW, "owner": "ann", "attempts": 1, "cancel_requested": False, "version": 1, "output": "/o",
            "launcher": "local", "model": "m", "spec": {},
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("progress", "line"),
    [
        ({}, "score"),
        ({"waiting": SENTENCE, "actors_wanted": 8}, f"score · 0 of 8 actors · {SENTENCE}"),
        (
            {"samples_done": 3, "tokens_per_s": 5.0, "actors": 2, "actors_wanted": 8},
            "score 3/100 · 5 tok/s · 2 of 8 actors",
        ),
        ({"samples_done": 3, "tokens_per_s": 5.0, "actors": 8, "actors_wanted": 8}, "score 3/100 · 5 tok/s"),
    ],
)
def test_a_line_has_the_sentence_and_the_actors_that_are_missing(progress: dict[str, Any], line: str) -> None:
    """As `qtune jobs list`, `show` and `watch` print it."""
    assert progress_of(job(**progress)) == line


def test_problems_are_facts_of_a_job() -> None:
    """Each on its own line."""
    from rich.console import Console

    console = Console(width=120)
    with console.capture() as captured:
        console.print(facts_of(job(problems=["actor a:1 failed: CUDA error", "actor b:2 retired: sick"])))
    lines = [line.split() for line in captured.get().splitlines()]
    at = next(i for i, line in enumerate(lines) if line[:1] == ["problems"])
    assert lines[at][1:3] == ["actor", "a:1"]
    assert lines[at + 1][:2] == ["actor", "b:2"]
