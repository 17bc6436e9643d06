"""Run one job under kills: start it, kill at the moments dealt, repeat the command until the output is complete.

What is noted of each kill: the stage that it really hit, how it ended, and the seconds until the job had finished
something new. A kill that the job should survive by itself and that ended it instead is told as such.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil

from benchmarks.chaos.hosts import Host
from benchmarks.chaos.kinds import ENDS_THE_DRIVER, STAGES, Kill
from tests.jobs import QTUNE, environment
from tests.nodes import Node
from tests.processes import finished, kill_all, progress, tree

POLL_S = 0.005
EXIT_S = 150
"""A driver that got SIGTERM, or lost its cluster, ends within this time."""
QUIET_S = 240
"""A job that finishes nothing for so long hangs."""
ORPHANS_S = 90
"""Processes of a killed driver end within this time. Ray's agents take a minute to give up on its dead server."""
MAX_RUNS = 30
SHARDS_IN_FLIGHT = 3
"""Shards in flight behind a victim may still finish. With more shards than that the job has recovered."""


@dataclass(frozen=True, slots=True)
class Struck:
    """A kill that was made."""

    kill: Kill
    stage: str
    """The stage in which the kill really hit."""
    at_s: float
    """Since the job's first start."""
    shards_done: int
    exit_code: int | None = None
    """Exit code of the driver, where the kill ended it."""
    outcome: str = ""
    seconds: float | None = None
    """From the kill until shards are finished again, or the output is complete; None where another kill came first."""


@dataclass(slots=True)
class DisturbedJob:
    """A command, run again until its output is complete."""

    arguments: Sequence[object]
    out: Path
    host: Host
    env: dict[str, str]
    log: Path
    struck: list[Struck] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    missed: list[Kill] = field(default_factory=list)
    """Kills whose victim or moment did not occur."""
    runs: int = 0
    on_kill: Callable[[Struck], None] = lambda _: None
    _driver: subprocess.Popen[str] | None = None
    _open: int | None = None
    """Index in `struck` of the kill after which nothing has been finished yet."""
    _began_s: float = 0.0
    _launched_at_s: float = 0.0
    _at_launch: int = 0
    _seen: int = 0
    _seen_s: float = 0.0
    _files: dict[Path, tuple[int, int]] = field(default_factory=dict)
    """Files of finished shards, as they were at some kill: (inode, time of change in ns)."""
    _orphans: list[psutil.Process] = field(default_factory=list)

    # --- the story

    def run(self, kills: Sequence[Kill]) -> None:
        """Make the kills in their order, and run to the end."""
        self._began_s = time.monotonic()
        self._launch()
        try:
            self._strike_all(kills)
            while self._is_going():
                time.sleep(POLL_S)
            self._check_untouched()
        finally:
            self._end_driver()

    def _strike_all(self, kills: Sequence[Kill]) -> None:
        for i, kill in enumerate(kills):
            if not self._wait_for_moment(kill):
                self.missed += kills[i:]
                return
            if targets := self.host.targets(kill.kind.victim, self._running):
                self._strike(kill, targets)
            else:
                self.missed.append(kill)

    @property
    def _running(self) -> subprocess.Popen[str]:
        assert self._driver is not None
        return self._driver

    def _launch(self) -> None:
        self.runs += 1
        if self.runs > MAX_RUNS:
            raise RuntimeError(f"the job did not complete in {MAX_RUNS} runs; see {self.log}")
        self._launched_at_s, self._at_launch = time.time(), self._count()
        self._seen, self._seen_s = self._at_launch, time.monotonic()
        command = [*QTUNE, *map(str, self.arguments), *self.host.arguments]
        with self.log.open("a") as log:
            self._driver = subprocess.Popen(
                command,
                env={**environment(self.host.env), **self.env},
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )

    # --- where the job is

    def _count(self) -> int:
        return len(finished(self.out)) + len(finished(self.out, "pruned"))

    def _stage(self) -> str:
        """Return a stage of kinds.STAGES by progress.json of this run."""
        told = str(progress(self.out, self._launched_at_s).get("stage", "prepare"))
        if told == "score" and self._count() == self._at_launch:
            return "encode"
        return {"start": "prepare", "done": "commit"}.get(told, told)

    def _is_going(self) -> bool:
        """Take note of what was done, start the command again where it failed; False once the output is complete."""
        count = self._count()
        if self._open is not None and count > self.struck[self._open].shards_done + SHARDS_IN_FLIGHT:
            self._close("")
        if count != self._seen:  # the last stage removes the markers
            self._seen, self._seen_s = count, time.monotonic()
        self._check_manifest()
        code = self._running.poll()
        if code == 0:
            self._close("")
            return False
        if code is not None:
            self._ended(code)
        elif time.monotonic() - self._seen_s > QUIET_S:
            self.problems.append(f"nothing finished for {QUIET_S} s in stage {self._stage()}; driver killed")
            self._close("HUNG")
            self._end_driver()
            self._launch()
        return True

    def _check_manifest(self) -> None:
        if not (self.out / "manifest.json").exists():
            return
        if (stage := self._stage()) not in ("commit", "prepare"):  # a run that finds it complete stays in prepare
            self.problems.append(f"a manifest was there in stage {stage}")

    def _ended(self, code: int) -> None:
        """Record that the driver ended with an error without a kill."""
        last = self.log.read_text(errors="replace").strip().splitlines()[-4:]
        if self._open is None:
            self.problems.append(f"the job ended by itself with code {code}: {' / '.join(last)}")
        else:
            self.struck[self._open] = replace(self.struck[self._open], exit_code=code)
            self._close("ENDED THE JOB, resumed")
        self.host.repair()
        self._launch()

    def _close(self, outcome: str) -> None:
        """Close the record of the last kill."""
        if self._open is None:
            return
        last = self.struck[self._open]
        seconds = time.monotonic() - self._began_s - last.at_s
        self.struck[self._open] = replace(last, seconds=seconds, outcome=outcome or last.outcome)
        self.on_kill(self.struck[self._open])
        self._open = None

    # --- kills

    def _wait_for_moment(self, kill: Kill) -> bool:
        """Wait for the stage, the shards and the delay of a kill, and for a victim. False where the job is complete."""
        base = self._count()
        goal = STAGES.index(kill.kind.stage)
        while True:
            if not self._is_going():
                return False
            stage = STAGES.index(self._stage()) if self._stage() in STAGES else -1
            enough = kill.kind.stage not in ("score", "prune") or self._count() >= base + kill.shards
            if stage > goal or (stage == goal and enough):
                break
            time.sleep(POLL_S)
        until_s = time.monotonic() + (kill.delay_s if stage == goal else 0)
        while time.monotonic() < until_s or not self.host.targets(kill.kind.victim, self._running):
            if not self._is_going():
                return False
            time.sleep(POLL_S)
        return self._is_going()

    def _strike(self, kill: Kill, targets: Sequence[psutil.Process | Node]) -> None:
        if self._open is not None:
            self.on_kill(self.struck[self._open])  # another kill before the job had finished anything new
            self._open = None
        self._remember_finished()
        stage, victim = self._stage(), kill.kind.victim
        doomed = tree(self._running.pid)
        at_s, done = time.monotonic() - self._began_s, self._count()
        self._seen, self._seen_s = done, time.monotonic()
        self.host.strike(victim, targets)
        self.struck.append(Struck(kill, stage, at_s, done))
        self._open = len(self.struck) - 1
        if victim not in ENDS_THE_DRIVER:
            self.struck[-1] = replace(self.struck[-1], outcome="survived")
            self.host.repair()
            return
        code = self._wait_for_exit()
        self.struck[-1] = replace(self.struck[-1], exit_code=code, outcome=_outcome(victim, code))
        if code is None:
            self.problems.append(f"{victim} in {stage}: the driver did not end within {EXIT_S} s")
            self._end_driver()
        self._orphans += [] if self.host.cluster else doomed
        self.host.repair()
        self._launch()

    def _wait_for_exit(self) -> int | None:
        try:
            return self._running.wait(EXIT_S)
        except subprocess.TimeoutExpired:
            return None

    def _end_driver(self) -> None:
        doomed = tree(self._running.pid)
        self._running.kill()
        kill_all(doomed)
        self._running.wait()

    # --- what must not have happened

    def _remember_finished(self) -> None:
        """Remember files of shards with a marker, which must never be written again."""
        for stage in ("scored", "pruned"):
            for marker in finished(self.out, stage):
                for path in self._files_of(stage, marker):
                    if path not in self._files and path.exists():
                        self._files[path] = _identity(path)

    def _files_of(self, stage: str, marker: str) -> list[Path]:
        """Return the files that a marker names; none if the job has ended and removed it."""
        try:
            body = json.loads((self.out / "_qtune" / stage / marker).read_text())
        except FileNotFoundError:
            return []
        return [self.out / file["path"] for file in body["files"]]

    def _check_untouched(self) -> None:
        for path, before in self._files.items():
            if not path.exists() or _identity(path) != before:
                self.problems.append(f"{path.relative_to(self.out)} was finished, and written again")
        _, left = psutil.wait_procs(self._orphans, timeout=ORPHANS_S)
        if left:
            self.problems.append(f"{len(left)} processes outlived their driver by {ORPHANS_S} s: {left[0]}")
            kill_all(left)


def _outcome(victim: str, code: int | None) -> str:
    if code is None:
        return "HUNG"
    if victim == "driver by SIGTERM" and code not in (0, 143):
        return f"EXIT CODE {code}, resumed"
    return "complete before it ended" if code == 0 else "resumed"


def _identity(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_ino, found.st_mtime_ns
