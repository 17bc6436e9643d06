"""Retry accounting that outlives worker processes: attempts per shard, shards in progress, and the stop flag.

A worker that dies cannot report it, and Ray repeats its task without limit. So before each attempt at a shard a stage
asks the supervisor, an object on the driver's node that counts. The price is two short calls per stage and shard.
A success resets the count: a shard that is computed again because its node left keeps all its attempts.

    an exception                retry in the same process, after a pause that grows
    a StorageError              no retry here: storage has retried already
    a dead engine or worker     the process exits, Ray starts another one and gives it the shard again
    wrong spec, model, input    ends the job: the cause is not a shard
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, TypeVar

from qtune_service.errors import (
    DataError,
    EngineError,
    ModelError,
    OutputConflictError,
    ShardFailedError,
    SpecError,
    StorageError,
)
from qtune_service.pipeline.actor_states import ActorState, ActorStates, Phase
from qtune_service.scoring.engine_class import EngineAgreement, EngineClass

STOPPING = 0
FATAL = (SpecError, ModelError, DataError, OutputConflictError)
PAUSE_S = 0.5
DEAD_ENGINE_STATUS = 70
STOP_TIMEOUT_S = 10
"""After this time without an answer to a stop request the supervisor and its workers count as lost."""

Result = TypeVar("Result")
ReportProgress: TypeAlias = Callable[[int], bool]
"""Called with the tokens scored so far. Returns whether the job is stopping."""


class StoppedError(EngineError):
    """The job was stopped before this shard was finished. No failure: a later run continues with it."""


class Supervisor:
    """The state of one scoring run."""

    def __init__(self) -> None:
        self._attempts: Counter[tuple[str, int]] = Counter()
        self._problems: dict[tuple[str, int], str] = {}
        self._tokens: dict[int, int] = {}
        self._successes: Counter[str] = Counter()
        self._actors = ActorStates()
        self._engine = EngineAgreement()
        self._stopping = False

    def begin(self, stage: str, shard: int, *, closing: bool) -> tuple[int, str]:
        """Count an attempt. Return its number, from 1, and the problem of the last one. STOPPING: do not begin."""
        if self._stopping and not closing:
            return STOPPING, ""
        self._attempts[stage, shard] += 1
        return self._attempts[stage, shard], self._problems.get((stage, shard), "")

    def report(self, shard: int, tokens: int = 0) -> bool:
        """Record how many tokens of a shard are scored. Return whether the job is stopping."""
        if tokens != self._tokens.get(shard):
            self._actors.moved(shard)
        self._tokens[shard] = tokens
        return self._stopping

    def set_actor(self, name: str, phase: Phase, shard: int | None = None, problem: str = "") -> None:
        """Record what a scoring actor does from now on."""
        self._actors.set(name, phase, shard, problem)

    def actors(self) -> list[ActorState]:
        """Return what the scoring actors do."""
        return self._actors.all()

    def expect_engine(self, agreed: EngineClass | None, voters: int) -> None:
        """Set the class of engines of earlier scores, and how many actors decide where there are none."""
        self._engine = EngineAgreement(agreed=agreed, voters=voters)

    def propose_engine(self, actor: str, engine: EngineClass | None, *, is_fallback: bool) -> EngineClass | None:
        """Return the class of engines that the actors agree on; see EngineAgreement."""
        return self._engine.propose(actor, engine, is_fallback=is_fallback)

    def fail(self, stage: str, shard: int, problem: str) -> None:
        """Record why an attempt failed."""
        self._problems[stage, shard] = problem

    def succeed(self, stage: str, shard: int) -> None:
        """Record that a stage has finished a shard, and reset its attempts."""
        self._attempts.pop((stage, shard), None)
        self._problems.pop((stage, shard), None)
        self._successes[stage] += 1

    def has_succeeded(self, stage: str) -> bool:
        """Return whether a stage ever finished a shard."""
        return self._successes[stage] > 0

    def stop(self) -> set[int]:
        """Refuse new attempts. Return the shards that have begun scoring, including finished ones."""
        self._stopping = True
        return set(self._tokens)


class SupervisorHandle(Protocol):
    """Calls the supervisor from any process of the job."""

    def call(self, method: str, *arguments: Any, timeout_s: float | None = None, **options: Any) -> Any:
        """Call a method and return its result."""
        ...

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method without waiting for it."""
        ...

    def reporter(self, shard: int) -> ReportProgress:
        """Return a function that reports a shard's progress and never waits."""
        ...


@dataclass(frozen=True, slots=True)
class LocalSupervisor:
    """A handle of a supervisor in this process."""

    supervisor: Supervisor

    def call(self, method: str, *arguments: Any, timeout_s: float | None = None, **options: Any) -> Any:  # noqa: ARG002 - the protocol
        """Call a method and return its result."""
        return getattr(self.supervisor, method)(*arguments, **options)

    def send(self, method: str, *arguments: Any) -> None:
        """Call a method."""
        getattr(self.supervisor, method)(*arguments)

    def reporter(self, shard: int) -> ReportProgress:
        """Return a function that reports a shard's progress."""
        return lambda tokens: self.supervisor.report(shard, tokens)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The limit of attempts, and the consequence of each kind of error. It travels to the workers."""

    supervisor: SupervisorHandle
    max_attempts: int
    replaces_workers: bool = True
    """Whether a process that exits is replaced by another one."""

    def run(self, stage: str, shard: int, work: Callable[[], Result], *, closing: bool = False) -> Result:
        """Run a stage's work on a shard, with retries where they may help.

        `closing` work continues while the job stops. Raise StoppedError, ShardFailedError, or an error that ends the
        job.
        """
        while True:
            attempt, problem = self.supervisor.call("begin", stage, shard, closing=closing)
            if attempt == STOPPING:
                raise StoppedError("the job is stopping")
            if attempt > self.max_attempts:
                raise _failed(stage, shard, problem or "its worker died: killed, crashed, or out of memory")
            try:
                result = work()
            except (*FATAL, StoppedError):
                raise
            except StorageError as error:
                if closing:  # the output itself fails, so every shard would
                    raise
                raise _failed(stage, shard, str(error)) from error
            except EngineError as error:
                self.supervisor.call("fail", stage, shard, str(error))
                if self.replaces_workers:
                    os._exit(DEAD_ENGINE_STATUS)
                raise
            except Exception as error:  # noqa: BLE001 - an edge: any error of a stage is counted and reported
                self.supervisor.call("fail", stage, shard, f"{type(error).__name__}: {error}")
                time.sleep(PAUSE_S * attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                continue
            self.supervisor.send("succeed", stage, shard)
            return result

    def give_up_or_retire(self, stage: str, error: Exception) -> Exception:
        """Handle an actor that could not be made: exit this process if others of its stage work, else end the job."""
        if self.supervisor.call("has_succeeded", stage):
            os._exit(DEAD_ENGINE_STATUS)
        return error

    def stop(self) -> set[int]:
        """Refuse new attempts. Return the shards that have begun scoring, including finished ones."""
        return set(self.supervisor.call("stop", timeout_s=STOP_TIMEOUT_S))


def _failed(stage: str, shard: int, problem: str) -> ShardFailedError:
    return ShardFailedError(f"shard {shard}, {stage}: {problem}")
