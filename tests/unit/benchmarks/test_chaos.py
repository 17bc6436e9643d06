"""The chaos benchmark deals kills fairly, and tells what came of them."""

from __future__ import annotations

from benchmarks.chaos.job import Struck
from benchmarks.chaos.kinds import DECK, STAGES, Kill, deal
from benchmarks.chaos.table import JobResult, kill_line, summary

SETTINGS = tuple(dict.fromkeys(kind.setting for kind in DECK))


def test_every_kind_comes_before_any_comes_again() -> None:
    """A deck's worth of kills has each kind of the deck once; the same seed deals the same, another one does not."""
    jobs = deal(len(DECK), 3, 6, SETTINGS)
    kinds = [kill.kind for job in jobs for kill in job.kills]
    assert sorted(kinds, key=str) == sorted(DECK, key=str)
    assert deal(len(DECK), 3, 6, SETTINGS) == jobs
    assert deal(len(DECK), 4, 6, SETTINGS) != jobs


def test_kills_of_a_job_come_in_the_order_of_its_stages() -> None:
    """One job takes several kills of its own setting, early stages first, and never more than asked."""
    for job in deal(60, 1, 5, SETTINGS):
        stages = [STAGES.index(kill.kind.stage) for kill in job.kills]
        assert stages == sorted(stages)
        assert len(stages) <= 5
        assert {kill.kind.setting for kill in job.kills} == {job.setting}


def test_settings_can_be_left_out() -> None:
    """Only kills of the settings asked for are dealt, as many as asked."""
    jobs = deal(9, 1, 6, ["local, vllm"])
    assert {job.setting for job in jobs} == {"local, vllm"}
    assert sum(len(job.kills) for job in jobs) == 9


def test_the_summary_counts() -> None:
    """Kills by victim and stage, resumes, differences, and jobs that ended though they should have gone on."""
    kill = Kill(DECK[3], 2, 0.1)
    struck = [
        Struck(kill, "score", 12.0, 9, -9, "resumed", 8.0),
        Struck(kill, "score", 30.0, 20, 4, "ENDED THE JOB, resumed", 10.0),
    ]
    jobs = [JobResult(1, DECK[3].setting, 2, 0, 3, 60.0, ("scores: 1 rows lost, ['s1']",), 2e-7)]
    text = summary(struck, jobs)
    assert "| driver | score | local, reference | 2 | resumed 1, ENDED THE JOB, resumed 1 | 9.0 |" in text
    assert "2 kills in 1 jobs, 2 resumes, 1 differences." in text
    assert "1 kills ended a job that should have survived them." in text
    assert "in score, 9 shards finished, 12.0 s into the job: resumed, 8.0 s" in kill_line(1, struck[0])
