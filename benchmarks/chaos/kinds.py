"""Define the victims and moments of kills, and deal kills to jobs by a seed.

A moment is a stage of the job plus a random amount: of shards finished since the last kill, and of seconds. Kills of
one job are sorted by stage, so that one job takes several. All kinds come once before any comes again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Literal

Victim = Literal[
    "driver", "driver by SIGTERM", "scoring actor", "vLLM engine", "task worker", "worker node", "head node"
]
Setting = Literal["local, reference", "local, vllm", "two nodes, reference", "crowded cluster, breakable"]
ENGINES = {"breakable": "tests.broken_engine:build"}
"""Engines that are not named by their short names."""

STAGES = ("prepare", "plan", "encode", "score", "thresholds", "prune", "report", "commit")
"""In the order of a job. `encode`: nothing is scored yet in this run. `commit`: the manifest is being written."""
ENDS_THE_DRIVER = frozenset({"driver", "driver by SIGTERM", "head node"})
MAX_SHARDS = 8
MAX_DELAY_S = {"prepare": 6.0, "plan": 0.3, "encode": 4.0, "score": 0.4, "prune": 0.2, "report": 1.5}
"""Delays in the stages that last. A kill in another stage comes at its start, within INSTANT_S."""
INSTANT_S = 0.03


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of kill."""

    setting: Setting
    victim: Victim
    stage: str


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill to be made: once so many more shards are finished in its stage, and after a delay."""

    kind: Kind
    shards: int
    delay_s: float


@dataclass(frozen=True, slots=True)
class Assignment:
    """A job and the kills that will hit it, in the order of its stages."""

    setting: Setting
    kills: tuple[Kill, ...]


DECK = (
    *(Kind("local, reference", "driver", stage) for stage in (*STAGES, "score")),
    *(Kind("local, reference", "driver by SIGTERM", stage) for stage in ("score", "prune")),
    *(Kind("local, reference", "scoring actor", stage) for stage in ("encode", "score", "score")),
    *(Kind("local, reference", "task worker", stage) for stage in ("encode", "score", "prune")),
    *(Kind("local, vllm", "vLLM engine", stage) for stage in ("score", "score")),
    *(Kind("local, vllm", victim, "score") for victim in ("scoring actor", "driver")),
    *(Kind("two nodes, reference", "worker node", stage) for stage in ("score", "score", "prune")),
    *(Kind("two nodes, reference", victim, "score") for victim in ("head node", "scoring actor", "driver")),
    Kind("two nodes, reference", "head node", "prune"),
    *(Kind("crowded cluster, breakable", victim, "score") for victim in ("worker node", "scoring actor", "driver")),
    *(Kind("crowded cluster, breakable", "scoring actor", stage) for stage in ("encode", "score")),
    Kind("crowded cluster, breakable", "head node", "score"),
)


def deal(num_kills: int, seed: int, kills_a_job: int, settings: Sequence[str]) -> list[Assignment]:
    """Return jobs with their kills. The same seed gives the same kills."""
    chance = random.Random(seed)
    drawn = [_kill(kind, chance) for kind in islice(_endless(chance, settings), num_kills)]
    jobs = []
    for setting in settings:
        own = [kill for kill in drawn if kill.kind.setting == setting]
        for first in range(0, len(own), kills_a_job):
            some = own[first : first + kills_a_job]
            kills = tuple(sorted(some, key=lambda kill: STAGES.index(kill.kind.stage)))
            jobs.append(Assignment(kills[0].kind.setting, kills))
    chance.shuffle(jobs)
    return jobs


def _endless(chance: random.Random, settings: Sequence[str]) -> Iterator[Kind]:
    deck = [kind for kind in DECK if kind.setting in settings]
    while True:
        yield from chance.sample(deck, len(deck))


def _kill(kind: Kind, chance: random.Random) -> Kill:
    return Kill(kind, chance.randint(1, MAX_SHARDS), chance.uniform(0, MAX_DELAY_S.get(kind.stage, INSTANT_S)))
