"""Report the progress of a job: a tracker counts, and sinks show the counts.

The terminal gets a live line, a log gets a plain line every few seconds, and `progress.json` in the output lets a
server follow a job that it does not own. Rates are over a sliding window, so they show the current speed. The ETA is by
samples, since tokens are not known before encoding.

The history of the speed, for a chart, has at most MAX_POINTS points. When it is full, every second point is removed and
new ones are taken half as often. So a job of a minute has a point every second or two, and a job of a day one every
several minutes.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

MAX_POINTS = 240
FIRST_STEP_S = 1.0

Columns = dict[str, list[float]]


@dataclass(slots=True)
class History:
    """The speed of one attempt over time. Times are seconds since 1970."""

    clock: Callable[[], float] = time.time
    step_s: float = FIRST_STEP_S
    _points: list[tuple[float, int, int, float]] = field(default_factory=list)

    def note(self, samples_done: int, tokens_done: int, tokens_per_s: float) -> None:
        """Add a point if the last one is old enough."""
        now = self.clock()
        if self._points and now - self._points[-1][0] < self.step_s:
            return
        if len(self._points) == MAX_POINTS:
            self._points = self._points[::2]
            self.step_s *= 2
        self._points.append((now, samples_done, tokens_done, tokens_per_s))

    def columns(self) -> Columns:
        """Return the points as columns of plain data. Another thread may call this."""
        points = list(self._points)
        return {
            "at_s": [round(point[0], 1) for point in points],
            "samples_done": [point[1] for point in points],
            "tokens_done": [point[2] for point in points],
            "tokens_per_s": [round(point[3], 1) for point in points],
        }


WINDOW_S = 30.0
NO_RATE = frozenset({"resources", "loading"})
"""Kinds of waiting in which nothing is scored. They are left out of the rate, so that it is right when they end."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The progress of a job at one moment."""

    stage: str = "start"
    unit: str = "samples"
    done: int = 0
    total: int = 0
    """Units of the stage: samples in score and thresholds, shards in prune."""
    tokens_done: int = 0
    rejected: int = 0
    actors: int = 0
    per_s: float = 0.0
    tokens_per_s: float = 0.0
    eta_s: float | None = None
    waiting: str = ""
    """What the job waits for, such as `waiting for 8 GPUs (0 of 8), 41 min`. Empty while it makes progress."""
    problems: tuple[str, ...] = ()
    """Actors that failed, were retired or hang, a sentence each."""
    waiting_for: str = ""
    """The kind of waiting: a Reason of stall_watch.py."""
    waiting_s: float = 0.0
    """How long it has waited for this."""
    actors_wanted: int = 0
    """Scoring actors that the job requested. `actors` are those that there are."""
    phases: Mapping[str, int] = field(default_factory=dict)
    """Phase -> scoring actors in it, failed and retired ones included."""

    @property
    def news(self) -> tuple[object, ...]:
        """Return what differs from an earlier snapshot where more than time has passed."""
        return (self.stage, self.done, self.tokens_done, self.waiting_for, self.actors, len(self.problems))


@dataclass(frozen=True, slots=True)
class Observation:
    """What a look at the workers gave (stall_watch.py): the fields of a snapshot that no finished unit changes."""

    waiting: str = ""
    waiting_for: str = ""
    waiting_s: float = 0.0
    actors: int = 0
    phases: Mapping[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


MAX_PROBLEMS, MAX_PROBLEM_CHARS = 50, 500
"""A server refuses a progress.json with more than 100 problems, or one of more than 1,000 characters."""


def shorten(problems: Sequence[str]) -> tuple[str, ...]:
    """Return problems that fit into progress.json."""
    shown = [text if len(text) <= MAX_PROBLEM_CHARS else f"{text[:MAX_PROBLEM_CHARS]}..." for text in problems]
    if len(shown) > MAX_PROBLEMS:
        shown[MAX_PROBLEMS - 1 :] = [f"{len(shown) - MAX_PROBLEMS + 1:,} more"]
    return tuple(shown)


class Sink(Protocol):
    """Shows snapshots."""

    def show(self, snapshot: Snapshot) -> None:
        """Show the current progress. It is called often."""
        ...

    def say(self, text: str) -> None:
        """Show a line of text."""
        ...

    def close(self) -> None:
        """Release all resources. A second call has no effect."""
        ...


class Tracker:
    """Counts finished units and passes the progress to the sinks. `resumed` units count as done, not for the rate.

    Two threads call it: the driver's, and one that observes the workers.
    """

    def __init__(self, *sinks: Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks, self._clock, self._lock = sinks, clock, threading.RLock()
        self._snapshot = Snapshot()
        self._window: deque[tuple[float, int, int]] = deque()
        self._stage_started = self._moved_s = clock()
        self.seconds: dict[str, float] = {}
        self._problems: tuple[str, ...] = ()
        """Problems of actors that failed. They stay."""

    def stage(self, name: str, total: int, *, unit: str = "shards", resumed: int = 0, actors_wanted: int = 0) -> None:
        """Begin a stage, and store the time of the previous one in `seconds`."""
        with self._lock:
            self._end_stage()
            self._snapshot = Snapshot(
                stage=name,
                unit=unit,
                done=resumed,
                total=total,
                actors_wanted=actors_wanted,
                problems=shorten(self._problems),
            )
            self._window = deque([(self._clock(), resumed, 0)])
            self._moved_s = self._clock()
            self._show()

    def advance(self, units: int, *, tokens: int = 0, rejected: int = 0) -> None:
        """Count units as done."""
        with self._lock:
            last, self._moved_s = self._snapshot, self._clock()
            done, tokens_done = last.done + units, last.tokens_done + tokens
            self._window.append((self._moved_s, done, tokens_done))
            self._snapshot = replace(
                last,
                done=done,
                tokens_done=tokens_done,
                rejected=last.rejected + rejected,
                waiting="",
                waiting_for="",
                waiting_s=0.0,
            )
            self._measure()
            self._show()

    def observe(self, seen: Observation) -> None:
        """Show what the workers do. Rates and ETA are measured again, so that they follow a job that stands still."""
        with self._lock:
            last = self._snapshot
            changes = {one.name: getattr(seen, one.name) for one in fields(seen)}
            self._snapshot = replace(last, **changes | {"problems": shorten((*seen.problems, *self._problems))})
            if seen.waiting_for in NO_RATE:
                self._window = deque([(self._clock(), last.done, last.tokens_done)])
            self._measure()
            self._show()

    @property
    def quiet_s(self) -> float:
        """Return how long no unit has been finished."""
        return self._clock() - self._moved_s

    def _measure(self) -> None:
        now, last = self._clock(), self._snapshot
        while len(self._window) > 2 and now - self._window[0][0] > WINDOW_S:
            self._window.popleft()
        then, done_then, tokens_then = self._window[0]
        elapsed = max(now - then, 1e-6)
        per_s = (last.done - done_then) / elapsed
        self._snapshot = replace(
            last,
            per_s=per_s,
            tokens_per_s=(last.tokens_done - tokens_then) / elapsed,
            eta_s=(last.total - last.done) / per_s if per_s > 0 else None,
        )

    def report_problems(self, problems: tuple[str, ...]) -> None:
        """Show the problems of actors until the job ends, and say those that are new."""
        with self._lock:
            new = [f"actor {problem}" for problem in problems[len(self._problems) :]]
            self._problems = (*self._problems, *new)
            for problem in new:
                self.say(problem)
            self._snapshot = replace(self._snapshot, problems=shorten(self._problems))
            self._show()

    def say(self, text: str) -> None:
        """Show a line of text."""
        for sink in self._sinks:
            sink.say(text)

    def close(self) -> None:
        """End the last stage and the sinks."""
        self._end_stage()
        for sink in self._sinks:
            sink.close()

    def _end_stage(self) -> None:
        now, name = self._clock(), self._snapshot.stage
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._stage_started
        self._stage_started = now

    def _show(self) -> None:
        for sink in self._sinks:
            sink.show(self._snapshot)


class _Numbers(ProgressColumn):
    """`1,234/5,678 samples · 12,345 tok/s · ETA 0:01:23 · 2 actors`."""

    def render(self, task: Task) -> Text:
        return Text(describe(task.fields["snapshot"]), style="default")


def describe(s: Snapshot) -> str:
    """Return a snapshot as one line of text."""
    parts = [f"{s.done:,}/{s.total:,} {s.unit}"]
    if s.tokens_done:
        parts += [f"{s.tokens_done:,} tokens", f"{s.tokens_per_s:,.0f} tok/s"]
    if s.rejected:
        parts.append(f"{s.rejected:,} rejected")
    if s.eta_s is not None and s.done < s.total:
        parts.append(f"ETA {_duration(s.eta_s)}")
    if s.actors or s.actors_wanted:
        of = f" of {s.actors_wanted:,}" if s.actors < s.actors_wanted else ""
        parts.append(f"{s.actors:,}{of} actor{'s' if max(s.actors, s.actors_wanted) > 1 else ''}")
    if s.problems:
        parts.append(f"{len(s.problems):,} problem{'s' if len(s.problems) > 1 else ''}")
    if s.waiting:
        parts.append(s.waiting)
    return " · ".join(parts)


def _duration(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


class TerminalSink:
    """A live bar, redrawn in place. Each finished stage remains as a line."""

    def __init__(self, console: Console) -> None:
        columns = (SpinnerColumn(), TextColumn("[bold]{task.description:<11}"), BarColumn(bar_width=28), _Numbers())
        self._progress = Progress(*columns, console=console, refresh_per_second=8)
        self._task: TaskID | None = None
        self._stage = ""
        self._progress.start()

    def show(self, snapshot: Snapshot) -> None:
        """Redraw the stage's bar."""
        if snapshot.stage != self._stage or self._task is None:
            self._stage = snapshot.stage
            self._task = self._progress.add_task(snapshot.stage, total=None, snapshot=snapshot)
        self._progress.update(
            self._task,
            total=max(snapshot.total, 1),
            completed=snapshot.done,
            description=snapshot.stage,
            snapshot=snapshot,
        )

    def say(self, text: str) -> None:
        """Print above the bar."""
        self._progress.console.print(text, highlight=False)

    def close(self) -> None:
        """Stop drawing."""
        self._progress.stop()


QUIET_LINE_S = 300.0


class PlainSink:
    """Lines for a log: at the begin and end of each stage, and at most one every `every_s` seconds between.

    While nothing changes but the time, each line is followed by a pause twice as long, up to QUIET_LINE_S.
    """

    def __init__(self, console: Console, every_s: float = 5.0) -> None:
        self._console, self._every_s = console, every_s
        self._shown_s, self._pause_s, self._stage = 0.0, every_s, ""
        self._news: tuple[object, ...] = ()

    def show(self, snapshot: Snapshot) -> None:
        """Print a line, unless the last one is recent."""
        waited_s, is_news = time.monotonic() - self._shown_s, snapshot.news != self._news
        ends = snapshot.done >= snapshot.total and is_news
        if snapshot.stage == self._stage and waited_s < (self._every_s if is_news else self._pause_s) and not ends:
            return
        self._pause_s = self._every_s if is_news else min(2 * self._pause_s, QUIET_LINE_S)
        self._stage, self._shown_s, self._news = snapshot.stage, time.monotonic(), snapshot.news
        self.say(f"{snapshot.stage}: {describe(snapshot)}")

    def say(self, text: str) -> None:
        """Print a line."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Do nothing: no resource is held."""


class FileSink:
    """`progress.json`, rewritten at most every `every_s` seconds and at each change of stage.

    Without news it is rewritten every `heartbeat_s` seconds, so that a server can distinguish a slow driver from a
    dead one. The last version reports how the driver ended. `attempt` is the server's name of this
    driver, by which it recognizes the file, whatever the clocks say.
    """

    def __init__(
        self, write: Callable[[bytes], None], every_s: float = 2.0, heartbeat_s: float = 5.0, attempt: str = ""
    ) -> None:
        self._write, self._every_s, self._attempt = write, every_s, attempt
        self._next_s = 0.0
        self._snapshot, self._history = Snapshot(), History()
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, args=(heartbeat_s,), daemon=True)
        self._thread.start()

    def show(self, snapshot: Snapshot) -> None:
        """Rewrite the file, unless the last version is recent."""
        now, before, self._snapshot = time.monotonic(), self._snapshot, snapshot
        is_changed = snapshot.news != before.news
        is_urgent = snapshot.stage != before.stage or snapshot.done >= snapshot.total
        if snapshot.stage == "score":
            self._history.note(snapshot.done, snapshot.tokens_done, snapshot.tokens_per_s)
        if is_changed and (is_urgent or now >= self._next_s):
            self._next_s = now + self._every_s
            self._rewrite()

    def say(self, text: str) -> None:
        """Ignore text."""

    def close(self) -> None:
        """Stop the heartbeats."""
        self._ended.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def fail(self, code: str, message: str, hint: str) -> None:
        """Write why the job failed."""
        self.close()
        self._rewrite({"error": {"code": code, "message": message, "hint": hint}})

    def _send_heartbeats(self, heartbeat_s: float) -> None:
        while not self._ended.wait(heartbeat_s):
            with contextlib.suppress(OSError):  # a storage that fails ends the job itself
                self._rewrite()

    def _rewrite(self, more: Mapping[str, Any] | None = None) -> None:
        more = {"updated_at_s": time.time(), "history": self._history.columns(), **(more or {})}
        body = {**asdict(self._snapshot), "attempt": self._attempt, **more}
        with self._lock:
            self._write(json.dumps(body).encode())
