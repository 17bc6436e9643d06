"""What survives the death of a worker: how often a shard was tried, what is in hand, and the wish to stop.

A worker that dies cannot report it, and Ray runs its task again without end. So before each try of a shard its stage
asks the supervisor, a small actor beside the driver, which counts. The price is two short calls a stage and shard.
Successes set the count back: a shard that must be made again because its node left is not blamed.

    an exception                tried again at once, with a pause that grows
    a StorageError              not tried again: storage.py has done so
    a dead engine or worker     the actor ends, Ray starts another one and gives it the shard again
    wrong spec, model, input    no shard's fault: ends the job
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qtune_service.errors import (
    DataError,
    EngineError,
    ModelError,
    OutputConflictError,
    ShardFailedError,
    SpecError,
    StorageError,
)

STOPPING = 0
FATAL = (SpecError, ModelError, DataError, OutputConflictError)
PAUSE_S = 0.5
ANSWER_S = 10
"""A supervisor that does not answer a wish to stop for so long is gone, and its workers with it."""
DEAD_ENGINE_STATUS = 70


class StoppedError(EngineError):
    """The job was told to stop before this shard was through. No failure: a later run goes on with it."""


class Supervisor:
    """The actor's state. One a job."""

    def __init__(self) -> None:
        self._attempts: Counter[tuple[str, int]] = Counter()
        self._problems: dict[tuple[str, int], str] = {}
        self._begun: dict[int, int] = {}
        self._successes: Counter[str] = Counter()
        self._stopping = False

    def begin(self, stage: str, shard: int, *, closing: bool) -> tuple[int, str]:
        """Note a try: its number, from 1, and what the last one failed with. STOPPING: do not begin."""
        if self._stopping and not closing:
            return STOPPING, ""
        self._attempts[stage, shard] += 1
        return self._attempts[stage, shard], self._problems.get((stage, shard), "")

    def hold(self, shard: int, tokens: int = 0) -> bool:
        """Note how many tokens of a shard are scored; whether to stop."""
        self._begun[shard] = tokens
        return self._stopping

    def fail(self, stage: str, shard: int, problem: str) -> None:
        """Note what a try failed with."""
        self._problems[stage, shard] = problem

    def succeed(self, stage: str, shard: int) -> None:
        """Note that a stage is through with a shard."""
        self._attempts.pop((stage, shard), None)
        self._problems.pop((stage, shard), None)
        self._successes[stage] += 1

    def has_succeeded(self, stage: str) -> bool:
        """Whether a stage ever got through with a shard."""
        return self._successes[stage] > 0

    def in_hand(self) -> dict[int, int]:
        """Shards whose scoring has begun, ended ones too, with their tokens so far."""
        return dict(self._begun)

    def stop(self) -> dict[int, int]:
        """Let nothing new begin; gives `in_hand`."""
        self._stopping = True
        return self.in_hand()


def start_supervisor() -> Any:
    """Start the actor on the driver's node, where it lives as long as the driver's cluster."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1, "scheduling_strategy": here}
    return ray.remote(Supervisor).options(**options).remote()


@dataclass(frozen=True, slots=True)
class Guard:
    """A stage's side of the supervision; travels to the workers."""

    supervisor: Any
    max_attempts: int

    def run(self, stage: str, shard: int, work: Callable[[], bytes], *, closing: bool = False) -> bytes:
        """Do a stage's work on a shard, trying again where that may help.

        `closing` work goes on while the job stops. Raises StoppedError, ShardFailedError, or what ends the job.
        """
        while True:
            attempt, problem = self._ask("begin", stage, shard, closing=closing)
            if attempt == STOPPING:
                raise StoppedError("the job is stopping")
            if attempt > self.max_attempts:
                raise self._failed(stage, shard, problem or "its worker died: killed, crashed, or out of memory")
            try:
                done = work()
            except (*FATAL, StoppedError):
                raise
            except StorageError as error:
                if closing:  # the output itself: no shard would do better
                    raise
                raise self._failed(stage, shard, str(error)) from error
            except EngineError as error:
                self._ask("fail", stage, shard, str(error))
                os._exit(DEAD_ENGINE_STATUS)  # Ray starts another process with an engine of its own
            except Exception as error:  # noqa: BLE001 - an edge: whatever a stage raises is counted and told
                self._ask("fail", stage, shard, f"{type(error).__name__}: {error}")
                time.sleep(PAUSE_S * attempt * random.uniform(0.5, 1.5))  # noqa: S311 - jitter
                continue
            self.supervisor.succeed.remote(stage, shard)
            return done

    def give_up_or_retire(self, stage: str, error: Exception) -> Exception:
        """An actor that could not be made: ends the job if none of its stage ever worked, else this process alone."""
        if self._ask("has_succeeded", stage):
            os._exit(DEAD_ENGINE_STATUS)
        return error

    def stop(self) -> set[int]:
        """Let nothing new begin; gives the shards whose scoring has begun, ended ones too."""
        import ray

        return set(ray.get(self.supervisor.stop.remote(), timeout=ANSWER_S))

    def watch(self, shard: int, every_s: float = 1.0) -> Watch:
        """Report a shard's progress and learn of the wish to stop."""
        return Watch(self.supervisor, shard, every_s)

    def _failed(self, stage: str, shard: int, problem: str) -> ShardFailedError:
        return ShardFailedError(f"shard {shard}, {stage}: {problem}")

    def _ask(self, method: str, *arguments: Any, **options: Any) -> Any:
        import ray

        return ray.get(getattr(self.supervisor, method).remote(*arguments, **options))


class Watch:
    """Called with the tokens scored so far; true where the job wants to stop. Never waits for the answer."""

    def __init__(self, supervisor: Any, shard: int, every_s: float) -> None:
        self._supervisor, self._shard, self._every_s = supervisor, shard, every_s
        self._answer: Any = None
        self._next_s = 0.0
        self._stopping = False

    def __call__(self, tokens: int) -> bool:
        """Report, at most once every `every_s` seconds."""
        import ray

        now = time.monotonic()
        if self._answer is not None and ray.wait([self._answer], timeout=0)[0]:
            self._stopping, self._answer = self._stopping or ray.get(self._answer), None
        if self._answer is None and now >= self._next_s:
            self._answer, self._next_s = self._supervisor.hold.remote(self._shard, tokens), now + self._every_s
        return self._stopping
