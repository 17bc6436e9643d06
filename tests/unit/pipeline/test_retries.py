"""Retries: what a shard's attempts lead to."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from qtune_service.errors import DataError, EngineError, ModelError, ShardFailedError, StorageError
from qtune_service.pipeline import retries
from qtune_service.pipeline.retries import LocalSupervisor, RetryPolicy, StoppedError, Supervisor


@pytest.fixture
def policy(monkeypatch: pytest.MonkeyPatch) -> RetryPolicy:
    """Three attempts, without pauses."""
    monkeypatch.setattr(retries, "PAUSE_S", 0)
    return RetryPolicy(LocalSupervisor(Supervisor()), 3)


def failing(times: int, error: Exception) -> tuple[Callable[[], bytes], list[int]]:
    """Work that fails so many times, and a list that grows with each try."""
    tries: list[int] = []

    def work() -> bytes:
        tries.append(1)
        if len(tries) <= times:
            raise error
        return b"done"

    return work, tries


def test_a_passing_failure_is_tried_again(policy: RetryPolicy) -> None:
    """Two failures of three allowed tries leave a result."""
    work, tries = failing(2, RuntimeError("once more"))
    assert policy.run("score", 7, work) == b"done"
    assert len(tries) == 3


def test_a_lasting_failure_ends_with_its_reason(policy: RetryPolicy) -> None:
    """After the last try the error names shard, stage and cause; nothing is tried a fourth time."""
    work, tries = failing(99, RuntimeError("no way"))
    with pytest.raises(ShardFailedError, match=r"shard 7, encode: RuntimeError: no way"):
        policy.run("encode", 7, work)
    assert len(tries) == 3


def test_success_forgets_earlier_failures(policy: RetryPolicy) -> None:
    """A shard that must be made again because its node left starts with all its tries."""
    for _ in range(4):
        work, _ = failing(2, RuntimeError("again"))
        assert policy.run("score", 1, work) == b"done"


def test_a_worker_that_died_is_counted(policy: RetryPolicy) -> None:
    """Tries that never reported back count, and the reason says so."""
    for _ in range(3):
        policy.supervisor.call("begin", "score", 2, closing=False)
    with pytest.raises(ShardFailedError, match="its worker died"):
        policy.run("score", 2, lambda: b"")


@pytest.mark.parametrize("error", [DataError("changed"), ModelError("gone")])
def test_what_is_no_shards_fault_is_not_tried_again(policy: RetryPolicy, error: Exception) -> None:
    """A wrong input or model ends the job at the first try."""
    work, tries = failing(99, error)
    with pytest.raises(type(error)):
        policy.run("encode", 0, work)
    assert len(tries) == 1


def test_storage_has_had_its_tries(policy: RetryPolicy) -> None:
    """A StorageError fails the shard that reads, and the whole job where it writes."""
    work, tries = failing(99, StorageError("cannot read x"))
    with pytest.raises(ShardFailedError, match="cannot read x"):
        policy.run("encode", 0, work)
    assert len(tries) == 1
    with pytest.raises(StorageError, match="cannot read x") as caught:
        policy.run("commit", 0, work, closing=True)
    assert not isinstance(caught.value, ShardFailedError)


def test_a_dead_engine_takes_its_process_along(policy: RetryPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends, so that Ray starts another; what the engine said is remembered."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    work, _ = failing(99, EngineError("engine core died"))
    for _ in range(3):
        with pytest.raises(SystemExit):
            policy.run("score", 3, work)
    with pytest.raises(ShardFailedError, match="engine core died"):
        policy.run("score", 3, work)


def test_a_stopping_job_begins_nothing_but_closes(policy: RetryPolicy) -> None:
    """After the wish to stop only writing what is scored goes on; what is in hand is told."""
    report = policy.supervisor.reporter(4)
    assert report(10) is False
    assert policy.stop() == {4}
    with pytest.raises(StoppedError):
        policy.run("score", 5, lambda: b"x")
    assert policy.run("commit", 4, lambda: b"written", closing=True) == b"written"
    assert report(20) is True


def shared(policy: RetryPolicy, shard: int) -> int:
    """Begin an attempt at a shard of an actor that holds several, and return its number."""
    number: int = policy.supervisor.call("begin", "score", shard, closing=False, shares=True)[0]
    return number


def test_a_death_counts_for_the_shard_with_the_engine(policy: RetryPolicy) -> None:
    """Of two shards in a process that dies, the one with the engine used up an attempt. The other is suspect."""
    call = policy.supervisor.call
    assert shared(policy, 1) == shared(policy, 2) == 1
    assert call("enter", "score", 1, "node:1") == "work"
    for attempt in (2, 3):  # the process dies, and both are tried again
        assert shared(policy, 1) == attempt
        assert shared(policy, 2) == 1
        assert call("is_suspect", "score", 1)
        assert call("is_suspect", "score", 2)
        call("enter", "score", 1, "node:1")
    policy.supervisor.send("leave", "score", 1)
    call("enter", "score", 2, "node:1")
    assert shared(policy, 1) == 3
    assert shared(policy, 2) == 2
    policy.supervisor.send("succeed", "score", 2)
    assert shared(policy, 2) == 1
    assert not call("is_suspect", "score", 2)


def test_an_error_before_the_engine_is_counted(policy: RetryPolicy) -> None:
    """A shard that fails while it is prepared has reported it, so it is no other shard's fault."""
    work, tries = failing(99, RuntimeError("no way"))
    with pytest.raises(ShardFailedError, match="no way"):
        policy.run("score", 4, work, shares=True)
    assert len(tries) == 3


def test_a_stopping_job_gives_no_shard_the_engine(policy: RetryPolicy) -> None:
    """A prepared shard does not begin after the stop, and does not count as begun."""
    shared(policy, 1)
    shared(policy, 2)
    policy.supervisor.call("enter", "score", 1, "node:1")
    assert policy.stop() == {1}
    assert policy.supervisor.call("enter", "score", 2, "node:1") == "stop"
    assert policy.stop() == {1}
