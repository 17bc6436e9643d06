"""Progress: what is counted and what is shown."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass, field

from rich.console import Console

from qtune_service.pipeline.progress import (
    MAX_PROBLEM_CHARS,
    MAX_PROBLEMS,
    FileSink,
    Observation,
    PlainSink,
    Snapshot,
    Tracker,
    describe,
    shorten,
)


@dataclass
class Recorder:
    """A sink that remembers."""

    snapshots: list[Snapshot] = field(default_factory=list)
    said: list[str] = field(default_factory=list)

    def show(self, snapshot: Snapshot) -> None:
        """Remember."""
        self.snapshots.append(snapshot)

    def say(self, text: str) -> None:
        """Remember."""
        self.said.append(text)

    def close(self) -> None:
        """Close nothing."""


def test_rate_and_eta_leave_out_what_an_earlier_run_did() -> None:
    """Resumed samples count as done but not towards the rate."""
    now = [0.0]
    sink = Recorder()
    tracker = Tracker(sink, clock=lambda: now[0])
    tracker.stage("score", 100, unit="samples", resumed=40)
    now[0] = 2.0
    tracker.advance(20, tokens=2000)
    last = sink.snapshots[-1]
    assert (last.done, last.per_s, last.tokens_per_s, last.eta_s) == (60, 10.0, 1000.0, 4.0)


def test_seconds_are_kept_by_stage() -> None:
    """Each stage's time is known at the end."""
    now = [0.0]
    tracker = Tracker(clock=lambda: now[0])
    for name, seconds in (("plan", 1.5), ("score", 4.0)):
        tracker.stage(name, 1)
        now[0] += seconds
    tracker.close()
    assert (tracker.seconds["plan"], tracker.seconds["score"]) == (1.5, 4.0)


def test_plain_lines_tell_samples_tokens_rate_eta_and_actors() -> None:
    """One line has all that people look for."""
    text = describe(Snapshot("score", "samples", 1200, 5000, 90_000, 3, 2, 10.0, 4500.0, 380.0))
    assert text == "1,200/5,000 samples · 90,000 tokens · 4,500 tok/s · 3 rejected · ETA 0:06:20 · 2 actors"
    stream = io.StringIO()
    sink = PlainSink(Console(file=stream, width=200))
    for done in range(50):
        sink.show(Snapshot("score", "samples", done, 100))
    assert stream.getvalue().count("\n") == 1, "a log is not flooded"


def test_progress_file_is_json_for_servers() -> None:
    """progress.json holds the last snapshot and when it was taken."""
    bodies: list[bytes] = []
    FileSink(bodies.append).show(Snapshot("score", "samples", 5, 10))
    body = json.loads(bodies[-1])
    assert (body["stage"], body["done"], body["total"]) == ("score", 5, 10)
    assert body["updated_at_s"] > 0


def test_problems_of_actors_stay() -> None:
    """Each is said once, and shown until the job ends, with those that pass; cut to a size for progress.json."""
    sink = Recorder()
    tracker = Tracker(sink)
    tracker.stage("score", 10)
    tracker.report_problems(("n:1: the engine did not start: no device",))
    tracker.report_problems(("n:1: the engine did not start: no device", "m:2: retired: ECC error"))
    both: tuple[str, ...] = ("actor n:1: the engine did not start: no device", "actor m:2: retired: ECC error")
    assert tuple(sink.said) == both
    tracker.observe(Observation(problems=("actor m:3 hangs",)))
    assert sink.snapshots[-1].problems == ("actor m:3 hangs", *both)
    tracker.observe(Observation())
    tracker.stage("prune", 10)
    assert sink.snapshots[-1].problems == both
    many = shorten(["x" * 10_000] * 100)
    assert len(many) == MAX_PROBLEMS
    assert all(len(one) <= MAX_PROBLEM_CHARS + 3 for one in many)
    assert many[-1] == f"{101 - MAX_PROBLEMS} more"
