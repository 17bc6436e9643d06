"""What a shard's attempts lead to."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from qtune_service.errors import DataError, EngineError, ModelError, ShardFailedError, StorageError
from qtune_service.pipeline import retries
from qtune_service.pipeline.retries import Guard, StoppedError, Supervisor


class LocalGuard(Guard):
    """A guard whose supervisor lives in this process."""

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        return getattr(self.supervisor, method)(*arguments, **options)

    def stop(self) -> set[int]:
        """Ask without Ray."""
        return set(self.supervisor.stop())


class LocalSupervisor(Supervisor):
    """A supervisor that is asked without Ray."""

    class _Succeed:
        def __init__(self, owner: Supervisor) -> None:
            self._owner = owner

        def remote(self, stage: str, shard: int) -> None:
            """Pass the call on."""
            Supervisor.succeed(self._owner, stage, shard)

    def __init__(self) -> None:
        super().__init__()
        self.succeed = self._Succeed(self)  # type: ignore[assignment]


@pytest.fixture
def guard(monkeypatch: pytest.MonkeyPatch) -> Guard:
    """Three tries, without pauses."""
    monkeypatch.setattr(retries, "PAUSE_S", 0)
    return LocalGuard(LocalSupervisor(), 3)


def failing(times: int, error: Exception) -> tuple[Callable[[], bytes], list[int]]:
    """Work that fails so many times, and a list that grows with each try."""
    tries: list[int] = []

    def work() -> bytes:
        tries.append(1)
        if len(tries) <= times:
            raise error
        return b"done"

    return work, tries


def test_a_passing_failure_is_tried_again(guard: Guard) -> None:
    """Two failures of three allowed tries leave a result."""
    work, tries = failing(2, RuntimeError("once more"))
    assert guard.run("score", 7, work) == b"done"
    assert len(tries) == 3


def test_a_lasting_failure_ends_with_its_reason(guard: Guard) -> None:
    """After the last try the error names shard, stage and cause; nothing is tried a fourth time."""
    work, tries = failing(99, RuntimeError("no way"))
    with pytest.raises(ShardFailedError, match=r"shard 7, encode: RuntimeError: no way"):
        guard.run("encode", 7, work)
    assert len(tries) == 3


def test_success_forgets_earlier_failures(guard: Guard) -> None:
    """A shard that must be made again because its node left starts with all its tries."""
    for _ in range(4):
        work, _ = failing(2, RuntimeError("again"))
        assert guard.run("score", 1, work) == b"done"


def test_a_worker_that_died_is_counted(guard: Guard) -> None:
    """Tries that never reported back count, and the reason says so."""
    for _ in range(3):
        guard.supervisor.begin("score", 2, closing=False)
    with pytest.raises(ShardFailedError, match="its worker died"):
        guard.run("score", 2, lambda: b"")


@pytest.mark.parametrize("error", [DataError("changed"), ModelError("gone")])
def test_what_is_no_shards_fault_is_not_tried_again(guard: Guard, error: Exception) -> None:
    """A wrong input or model ends the job at the first try."""
    work, tries = failing(99, error)
    with pytest.raises(type(error)):
        guard.run("encode", 0, work)
    assert len(tries) == 1


def test_storage_has_had_its_tries(guard: Guard) -> None:
    """A StorageError fails the shard that reads, and the whole job where it writes."""
    work, tries = failing(99, StorageError("cannot read x"))
    with pytest.raises(ShardFailedError, match="cannot read x"):
        guard.run("encode", 0, work)
    assert len(tries) == 1
    with pytest.raises(StorageError, match="cannot read x") as caught:
        guard.run("commit", 0, work, closing=True)
    assert not isinstance(caught.value, ShardFailedError)


def test_a_dead_engine_takes_its_process_along(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends, so that Ray starts another; what the engine said is remembered."""

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    work, _ = failing(99, EngineError("engine core died"))
    for _ in range(3):
        with pytest.raises(SystemExit):
            guard.run("score", 3, work)
    with pytest.raises(ShardFailedError, match="engine core died"):
        guard.run("score", 3, work)


def test_a_stopping_job_begins_nothing_but_closes(guard: Guard) -> None:
    """After the wish to stop only writing what is scored goes on; what is in hand is told."""
    assert guard.supervisor.hold(4, 10) is False
    assert guard.stop() == {4}
    with pytest.raises(StoppedError):
        guard.run("score", 5, lambda: b"x")
    assert guard.run("commit", 4, lambda: b"written", closing=True) == b"written"
    assert guard.supervisor.hold(4, 20) is True


def test_an_actor_that_cannot_be_made(guard: Guard, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one ends the job with its error; once others work, only its process ends."""
    error = ModelError("does not fit")
    assert guard.give_up_or_retire("score", error) is error
    guard.run("score", 0, lambda: b"")

    def leave(status: int) -> None:
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(SystemExit):
        guard.give_up_or_retire("score", error)
