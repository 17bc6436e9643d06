"""Write kills and jobs as lines and tables in Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.chaos.job import Struck


@dataclass(frozen=True, slots=True)
class JobResult:
    """A job that was disturbed and completed."""

    number: int
    setting: str
    kills: int
    missed: int
    runs: int
    seconds: float
    differences: tuple[str, ...]
    """Differences to the undisturbed output, and all other problems."""
    max_score_difference: float
    """In nats."""


def kill_line(number: int, struck: Struck) -> str:
    """Return one line about a kill."""
    kind = struck.kill.kind
    planned = "" if kind.stage == struck.stage else f" (meant for {kind.stage})"
    seconds = "-" if struck.seconds is None else f"{struck.seconds:.1f} s"
    where = f"{struck.stage}{planned}, {struck.shards_done} shards finished, {struck.at_s:.1f} s into the job"
    return f"kill {number:3}  {kind.setting:22} {kind.victim:18} in {where}: {struck.outcome}, {seconds}"


def summary(struck: Sequence[Struck], jobs: Sequence[JobResult]) -> str:
    """Return tables of kills and of jobs."""
    head = "| killed | in stage | setting | kills | outcome | median s until shards finish again |"
    lines = [head, "|---|---|---|---:|---|---:|"]
    groups: dict[tuple[str, str, str], list[Struck]] = {}
    for one in struck:
        groups.setdefault((one.kill.kind.victim, one.stage, one.kill.kind.setting), []).append(one)
    for (victim, stage, setting), found in sorted(groups.items()):
        outcomes = ", ".join(f"{name} {n}" for name, n in Counter(one.outcome for one in found).items())
        times = [one.seconds for one in found if one.seconds is not None]
        middle = f"{median(times):.1f}" if times else ""
        lines.append(f"| {victim} | {stage} | {setting} | {len(found)} | {outcomes} | {middle} |")
    lines += ["", "| job | setting | kills | runs | seconds | differences | max score difference, nats |"]
    lines.append("|---:|---|---:|---:|---:|---:|---:|")
    lines += [
        f"| {j.number} | {j.setting} | {j.kills} | {j.runs} | {j.seconds:.0f} | {len(j.differences)} "
        f"| {j.max_score_difference:.1e} |"
        for j in jobs
    ]
    resumes, wrong = sum(j.runs for j in jobs) - len(jobs), sum(len(j.differences) for j in jobs)
    ended = sum("ENDED" in one.outcome for one in struck)
    lines += ["", f"{len(struck)} kills in {len(jobs)} jobs, {resumes} resumes, {wrong} differences."]
    lines.append(f"{ended} kills ended a job that should have survived them.")
    return "\n".join(lines)
