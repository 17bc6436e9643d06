"""Kill the parts of running jobs at random moments, and compare what they leave with an undisturbed run.

Victims: the driver in each stage (kill -9, SIGTERM), scoring actors, vLLM's engine process, task workers, a worker
node and the head of a Ray cluster. One of the clusters has a broken node, a node that joins late, and a second job. A
job that a kill ends is run again by the same command; one job takes several kills. At its end the same rows must be
there, each once, with the same masks and labels, and scores to 1e-6 (1e-5 on the cluster, whose actors use other
thread counts); finished shards must not have been written again, and no manifest may have been there before the end.
The seed decides who is killed when; what the job does by then varies.

    python -m benchmarks.chaos --kills 40 --seed 1
    python -m benchmarks.chaos --kills 6 --settings "local, vllm" --json chaos.json
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from benchmarks.chaos.hosts import PAUSE_S, Host, SecondJob, host_of
from benchmarks.chaos.job import DisturbedJob, Struck
from benchmarks.chaos.kinds import DECK, ENGINES, Assignment, Kill, deal
from benchmarks.chaos.table import JobResult, kill_line, summary
from tests.compare import differences, max_score_difference
from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, check_output, qtune

NUM_RECORDS, BAD_EVERY = 600, 60
SHARD_BYTES = 2048
"""About 75 shards, so there are many moments between two shards."""
KILLS_A_JOB = 6
TOLERANCE = {
    "local, reference": 1e-6,
    "local, vllm": 1e-6,
    "two nodes, reference": 1e-5,
    "crowded cluster, breakable": 1e-5,
}
SETTINGS = tuple(dict.fromkeys(kind.setting for kind in DECK))


def write_data(path: Path) -> Path:
    """Write demo records, some of them unusable."""
    records = DEMO_DATA.read_text(encoding="utf-8").splitlines(keepends=True)[:NUM_RECORDS]
    for i in range(0, NUM_RECORDS, BAD_EVERY):
        records[i] = '{"messages": [\n'
    path.write_text("".join(records), encoding="utf-8")
    return path


class Campaign:
    """Jobs under kills, one after the other, and their results."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._folder, self._chance = folder, random.Random(seed)
        self._data = write_data(folder / "data.jsonl")
        self.struck: list[Struck] = []
        self.jobs: list[JobResult] = []

    def arguments(self, engine: str, out: Path) -> list[object]:
        """Return the command of every job."""
        method = ("--min-tokens-to-prune", 4, "--category-field", "category", "--dtype", "float32")
        shape = ("--shard-bytes", SHARD_BYTES, "--engine", engine, "--output", out)
        return ["prune", self._data, "--model", DEMO_MODEL, *method, *shape]

    def undisturbed(self, engine: str) -> Path:
        """Return the output of a run without kills, made once for each engine."""
        out = self._folder / f"undisturbed-{engine.partition(':')[0]}"
        if not out.exists():
            began_s = time.monotonic()
            done = qtune(*self.arguments(engine, out), env=self._env(engine))
            if done.returncode:
                raise SystemExit(f"the undisturbed run failed: {done.stdout}{done.stderr}")
            print(f"undisturbed run, {engine}: {time.monotonic() - began_s:.1f} s", flush=True)
        return out

    def run(self, assignment: Assignment, host: Host) -> list[Kill]:
        """Run one job to its end under its kills. Returns the kills that found no moment or no victim."""
        number, name = len(self.jobs) + 1, assignment.setting.rpartition(", ")[2]
        engine = ENGINES.get(name, name)
        expected, out = self.undisturbed(engine), self._folder / f"job-{number}"
        began_s = time.monotonic()
        job = DisturbedJob(
            self.arguments(engine, out), out, host, self._env(engine), self._folder / f"job-{number}.log"
        )
        job.on_kill = self._note
        beside = self._folder / f"job-{number}-beside"
        second = SecondJob(self.arguments(engine, beside), self._folder / f"job-{number}-beside.log")
        with host.beside(second):
            job.run(assignment.kills)
        found = list(job.problems)
        for done in [out, beside][: 2 if second.runs else 1]:
            found += [*differences(expected, done, TOLERANCE[assignment.setting]), *_checked(done)]
        self.jobs.append(
            JobResult(
                number=number,
                setting=assignment.setting,
                kills=len(job.struck),
                missed=len(job.missed),
                runs=job.runs,
                seconds=time.monotonic() - began_s,
                differences=tuple(found),
                max_score_difference=max_score_difference(expected, out),
            )
        )
        print(f"job {number} complete: {job.runs} runs, {len(found)} differences", flush=True)
        for text in found:
            print(f"  DIFFERENCE {text}", flush=True)
        if not found:
            shutil.rmtree(out)
            shutil.rmtree(beside, ignore_errors=True)
        return job.missed

    def _note(self, struck: Struck) -> None:
        self.struck.append(struck)
        print(kill_line(len(self.struck), struck), flush=True)

    def _env(self, engine: str) -> dict[str, str]:
        own = {
            "RAY_TMPDIR": str(self._folder),
            "QTUNE_LOG": str(self._folder / "libraries.log"),
            "QTUNE_TEST_PAUSE_S": PAUSE_S,
        }
        return {**own, **({"VLLM_ENABLE_V1_MULTIPROCESSING": "1"} if engine == "vllm" else {})}


def _checked(out: Path) -> list[str]:
    """Return the findings of the independent checker, where it is beside the checkout."""
    shared = REPO.parent / "shared"
    if not shared.is_dir():
        return []
    told = check_output(shared, out)
    return [] if told.endswith("\n0 checks failed\n") else told.splitlines()


def campaign(arguments: argparse.Namespace, folder: Path) -> Campaign:
    """Deal kills to jobs until so many have been made."""
    running, seed = Campaign(folder, arguments.seed), arguments.seed
    chance = random.Random(seed)
    while (wanted := arguments.kills - len(running.struck)) > 0:
        jobs = deal(wanted, seed, KILLS_A_JOB, arguments.settings)
        for setting in arguments.settings:  # a cluster is started once
            if own := [job for job in jobs if job.setting == setting]:
                with host_of(setting, chance) as host:
                    for job in own:
                        running.run(job, host)
        seed += 1_000
    return running


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=40, help="how many kills to make")
    parser.add_argument("--seed", type=int, default=1, help="decides who is killed, and when")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS))
    parser.add_argument("--json", type=Path, help="write all kills and jobs to this file")
    return parser.parse_args(arguments)


def main() -> None:
    """Run, print, and fail where anything differs."""
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began_s = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))  # Ray's socket paths must be short
    print(f"{arguments.kills} kills, seed {arguments.seed}, {os.cpu_count()} cores; outputs and logs in {folder}")
    running = campaign(arguments, folder)
    print("\n" + summary(running.struck, running.jobs))
    print(f"{time.monotonic() - began_s:.0f} s in all")
    if arguments.json:
        body = {"arguments": vars(arguments), "kills": [asdict(s) for s in running.struck]}
        jobs = [asdict(j) for j in running.jobs]
        arguments.json.write_text(json.dumps({**body, "jobs": jobs}, indent=1, default=str) + "\n", encoding="utf-8")
    if any(job.differences for job in running.jobs):
        raise SystemExit("there are differences; see above")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
