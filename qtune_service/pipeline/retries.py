"""Retry accounting that outlives worker processes: attempts per shard, shards in progress, and the stop flag.

A worker that dies cannot report it, and Ray repeats its task without limit. So before each attempt at a shard a stage
asks the supervisor, an object on the driver's node that counts. The price is two short calls per stage and shard.
A success resets the count: a shard that is computed again because its node left keeps all its attempts.

An actor may hold two shards, of which one has the engine (score_shard.py). If its process dies, the attempt counts for
the shard with the engine. The other shard's attempt does not count, but it is suspect and tried alone next.

    an exception                retry in the same process, after a pause that grows; the second time on an actor that is
                                not the only one, another actor gets the shard (dispatch.py)
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
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from qtune_service.errors import (
    DataError,
    EngineError,
    ModelError,
    OutputConflictError,
    QTuneError,
    ShardFailedError,
    SpecError,
    StorageError,
)
from qtune_service.pipeline.actor_states import ActorState, ActorStates, Phase
from qtune_service.pipeline.dispatch import START_FAILURES, Dispatch, Health, Order
from qtune_service.scoring.engine_class import EngineAgreement, EngineClass

STOPPING = 0
FATAL = (SpecError, ModelError, DataError, OutputConflictError)
PAUSE_S = 0.5
MAX_ERRORS = 20
"""Most errors of engines that did not start which are kept."""
DEAD_ENGINE_STATUS = 70
STOP_TIMEOUT_S = 10
"""After this time without an answer to a stop request the supervisor and its workers count as lost."""

Result = TypeVar("Result")
Entry: TypeAlias = Literal["work", "stop", "skip"]
"""work: a shard has the engine. stop: the job is stopping. skip: another actor has the shard."""
ReportProgress: TypeAlias = Callable[[int], bool]
"""Called with the tokens scored so far. Returns whether the job is stopping."""


class StoppedError(EngineError):
    """The job was stopped before this shard was finished. No failure: a later run continues with it."""


class PassedOnError(EngineError):
    """Another actor has this shard, or gets it. No failure: the shard arrives from there."""


class Supervisor:
    """The state of one scoring run. start_failures: engines that may fail to start on a node before it is closed."""

    def __init__(self, start_failures: int = START_FAILURES) -> None:
        self._attempts: Counter[tuple[str, int]] = Counter()
        self._problems: dict[tuple[str, int], str] = {}
        self._tokens: dict[int, int] = {}
        self._actors = ActorStates()
        self._dispatch = Dispatch(self._actors, start_failures)
        self._partials: set[int] = set()
        self._start_errors: list[QTuneError] = []
        self._waiting: set[tuple[str, int]] = set()
        """Shards that share a process in which another shard may have the engine."""
        self._suspects: set[tuple[str, int]] = set()
        self._engine = EngineAgreement()
        self._stopping = False

    def begin(self, stage: str, shard: int, *, closing: bool, shares: bool = False) -> tuple[int, str]:
        """Count an attempt. Return its number, from 1, and the problem of the last one. STOPPING: do not begin.

        shares: the shard waits for an engine that other shards of its process use. It calls `enter` and `leave`.
        """
        if self._stopping and not closing:
            return STOPPING, ""
        key = stage, shard
        if key in self._waiting:  # the process died, and another shard may have been the cause
            self._suspects.add(key)
        else:
            self._attempts[key] += 1
        if shares:
            self._waiting.add(key)
        self._dispatch.begin(stage, shard)
        return self._attempts[key], self._problems.get(key, "")

    def is_suspect(self, stage: str, shard: int) -> bool:
        """Return whether the process died when it held this shard, which must then have it alone."""
        return (stage, shard) in self._suspects or self._attempts[stage, shard] > 1

    def enter(self, stage: str, shard: int, actor: str) -> Entry:
        """Record that a shard has the engine of an actor, unless the job is stopping or another actor has it."""
        if self._stopping:
            return "stop"
        if not self._dispatch.enter(actor, shard):
            return "skip"
        self._waiting.discard((stage, shard))
        self._tokens.setdefault(shard, 0)
        self._actors.set(actor, "scoring", shard)
        return "work"

    def leave(self, stage: str, shard: int) -> None:
        """Record that a shard needs the engine no more."""
        self._waiting.add((stage, shard))

    def report(self, shard: int, tokens: int = 0) -> bool:
        """Record how many tokens of a shard are scored. Return whether the job is stopping."""
        if tokens != self._tokens.get(shard):
            self._actors.moved(shard)
        self._tokens[shard] = tokens
        return self._stopping

    def set_actor(self, name: str, phase: Phase, shard: int | None = None, problem: str = "") -> None:
        """Record what a scoring actor does from now on."""
        self._actors.set(name, phase, shard, problem)

    def describe_actor(self, name: str, detail: str) -> None:
        """Record what exactly a scoring actor does in its phase, such as a download."""
        self._actors.describe(name, detail)

    def actors(self) -> list[ActorState]:
        """Return what the scoring actors do."""
        return self._actors.all()

    def expect_engine(self, agreed: EngineClass | None, voters: int) -> None:
        """Set the class of engines of earlier scores, and how many actors decide where there are none."""
        self._engine = EngineAgreement(agreed=agreed, voters=voters)

    def propose_engine(self, actor: str, engine: EngineClass | None, *, is_fallback: bool) -> EngineClass | None:
        """Return the class of engines that the actors agree on; see EngineAgreement."""
        return self._engine.propose(actor, engine, is_fallback=is_fallback)

    def fail(self, stage: str, shard: int, problem: str, *, is_engine: bool = False) -> bool:
        """Record why an attempt failed. Return whether another actor gets the shard."""
        self._problems[stage, shard] = problem
        self._waiting.discard((stage, shard))
        return self._dispatch.fail(stage, shard, problem, is_engine=is_engine)

    def succeed(self, stage: str, shard: int) -> None:
        """Record that a stage has finished a shard, and reset its attempts."""
        self._attempts.pop((stage, shard), None)
        self._problems.pop((stage, shard), None)
        self._waiting.discard((stage, shard))
        self._suspects.discard((stage, shard))
        self._dispatch.succeed(stage, shard)

    # --- actors and the shards that they get (dispatch.py)

    def offer(self, stage: str, shards: list[int]) -> None:
        """Begin a pool that runs a stage on these shards."""
        self._dispatch.offer(stage, shards)

    def take(self, start: int) -> list[int] | None:
        """Return the shards that were or are handed out, from this one on. None: there will be no more."""
        return self._dispatch.take(start)

    def arrived(self, shard: int, has_failed: bool) -> None:
        """Close a shard that arrived at the driver."""
        self._dispatch.arrived(shard, has_failed=has_failed)

    def finish(self) -> None:
        """End the run: nothing is handed out any more, and actors that wait exit."""
        self._dispatch.is_over = True

    def is_over(self) -> bool:
        """Return whether the run has ended."""
        return self._dispatch.is_over

    def start_actor(self, name: str, actor: str) -> Order:
        """Begin an actor's process. Return whether it may start its engine."""
        return self._dispatch.start(name, actor)

    def actor_started(self, name: str) -> None:
        """Record that an actor's engine runs."""
        self._dispatch.started(name)

    def actor_failed(self, name: str, error: QTuneError) -> Order:
        """Record that an actor's engine did not start. Return what its process does now."""
        self._start_errors = [*self._start_errors, error][:MAX_ERRORS]
        return self._dispatch.fail_start(name, error.message, is_fatal=isinstance(error, FATAL))

    def start_errors(self) -> list[QTuneError]:
        """Return the errors of engines that did not start."""
        return self._start_errors

    def hold(self, name: str, shard: int) -> Order:
        """Give a shard to an actor, or not."""
        return "work" if self._stopping else self._dispatch.hold(name, shard)

    def release(self, name: str, shard: int) -> None:
        """Record that an actor has ended its work on a shard."""
        self._dispatch.release(name, shard)

    def beat(self, name: str) -> None:
        """Record that an actor is alive."""
        self._dispatch.beat(name)

    def actor_left(self, name: str, partials: list[int]) -> None:
        """Hand out the shards of an actor that left after a notice. Some have partial scores. No attempt failed."""
        self._partials |= set(partials)
        for shard in self._dispatch.give_back(name):
            key = self._dispatch.stage, shard
            self._attempts[key] = max(0, self._attempts[key] - 1)
            self._waiting.discard(key)

    def has_partial(self, shard: int) -> bool:
        """Return whether an actor of this run has left partial scores of a shard."""
        return shard in self._partials

    def see(self, present: frozenset[str]) -> None:
        """Take the actors that the cluster has a process of."""
        self._dispatch.see(present)

    def health(self) -> Health:
        """Return what the driver must know of the pool."""
        return self._dispatch.health()

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
    max_failed_actors: int | None = None
    """Actors that may fail to start or be retired. None: any number, while one of them works."""

    def run(
        self, stage: str, shard: int, work: Callable[[], Result], *, closing: bool = False, shares: bool = False
    ) -> Result:
        """Run a stage's work on a shard, with retries where they may help.

        `closing` work continues while the job stops. `shares`: see `Supervisor.begin`. Raise StoppedError,
        PassedOnError, ShardFailedError, or an error that ends the job.
        """
        while True:
            attempt, problem = self.supervisor.call("begin", stage, shard, closing=closing, shares=shares)
            if attempt == STOPPING:
                raise StoppedError("the job is stopping")
            if attempt > self.max_attempts:
                raise _failed(stage, shard, problem or "its worker died: killed, crashed, or out of memory")
            try:
                result = work()
            except (*FATAL, StoppedError, PassedOnError):
                raise
            except StorageError as error:
                if closing:  # the output itself fails, so every shard would
                    raise
                raise _failed(stage, shard, str(error)) from error
            except EngineError as error:
                self.supervisor.call("fail", stage, shard, str(error), is_engine=True)
                if self.replaces_workers:
                    os._exit(DEAD_ENGINE_STATUS)
                raise
            except Exception as error:  # noqa: BLE001 - an edge: any error of a stage is counted and reported
                self._pass_on(stage, shard, error)
                time.sleep(PAUSE_S * attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                continue
            self.supervisor.send("succeed", stage, shard)
            return result

    def _pass_on(self, stage: str, shard: int, error: Exception) -> None:
        """Count a failure. Raise PassedOnError where another actor gets the shard."""
        if self.supervisor.call("fail", stage, shard, f"{type(error).__name__}: {error}"):
            raise PassedOnError(f"shard {shard} goes to another actor") from error

    def stop(self) -> set[int]:
        """Refuse new attempts. Return the shards that have begun scoring, including finished ones."""
        return set(self.supervisor.call("stop", timeout_s=STOP_TIMEOUT_S))


def _failed(stage: str, shard: int, problem: str) -> ShardFailedError:
    return ShardFailedError(f"shard {shard}, {stage}: {problem}")
