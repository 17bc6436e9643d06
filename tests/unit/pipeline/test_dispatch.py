"""Which actor gets a shard, and which actors and nodes get none."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from qtune_service.pipeline.actor_states import ActorStates
from qtune_service.pipeline.dispatch import IDLE_S, LOST_S, PAUSE_S, START_DEATHS, Dispatch


@dataclass
class Pool:
    """A dispatch with a clock, and its actors: `a1` is process 1 of actor `a`."""

    now: float = 1000.0
    dispatch: Dispatch = field(init=False)

    def __post_init__(self) -> None:
        self.dispatch = Dispatch(ActorStates(self.clock), clock=self.clock)

    def clock(self) -> float:
        """Return the time."""
        return self.now

    def works(self, *names: str) -> None:
        """Start actors with their engines. The first letter of a process is its actor."""
        for name in names:
            assert self.dispatch.start(name, name.partition(":")[2][0]) == "work"
            self.dispatch.started(name)

    def scores(self, name: str, *shards: int) -> None:
        """Let an actor score shards that it gets."""
        for shard in shards:
            assert self.dispatch.hold(name, shard) == "work"
            assert self.dispatch.enter(name, shard)
            self.dispatch.succeed("score", shard)
            self.dispatch.release(name, shard)
            self.dispatch.arrived(shard, has_failed=False)

    def takes(self, name: str, shard: int) -> None:
        """Let an actor begin a shard."""
        assert self.dispatch.hold(name, shard) == "work"
        assert self.dispatch.enter(name, shard)

    def fails(self, name: str, shard: int, problem: str = "CUDA error") -> bool:
        """Let the engine of an actor fail on a shard."""
        self.dispatch.hold(name, shard)
        self.dispatch.enter(name, shard)
        return self.dispatch.fail("score", shard, problem, is_engine=True)


@pytest.fixture
def pool() -> Pool:
    """Return a pool whose ten shards are handed out."""
    made = Pool()
    made.dispatch.offer("score", range(10))
    assert made.dispatch.take() == [*range(10)]
    return made


def test_shards_of_a_dead_process_are_handed_out_again(pool: Pool) -> None:
    """As soon as its actor is restarted; and one that another has is not scored twice."""
    pool.works("n:a1", "m:b1")
    assert pool.dispatch.hold("n:a1", 3) == "work"
    assert pool.dispatch.enter("n:a1", 3)
    assert pool.dispatch.take() == []
    assert pool.dispatch.hold("m:b1", 3) == "skip"
    pool.dispatch.start("n:a2", "a")
    assert pool.dispatch.take() == [3]
    pool.scores("m:b1", 3)
    assert pool.dispatch.hold("n:a2", 3) == "skip"


def test_shards_of_a_process_that_vanished_are_handed_out_at_once(pool: Pool) -> None:
    """Also where Ray has no room to start the actor again. One that the cluster does not know yet has not vanished."""
    pool.works("n:a1", "m:b1")
    pool.dispatch.hold("n:a1", 3)
    pool.dispatch.see(frozenset({"n:a1"}))
    assert pool.dispatch.take() == []
    pool.dispatch.see(frozenset({"m:b1"}))
    assert pool.dispatch.take() == [3]
    assert pool.dispatch.health().working == 1


def test_shards_of_a_silent_actor_are_handed_out_again(pool: Pool) -> None:
    """A lost node says nothing. An actor that gives signs of life keeps its shard as long as it takes."""
    pool.works("n:a1", "m:b1")
    for name, shard in {"n:a1": 3, "m:b1": 4}.items():
        pool.dispatch.hold(name, shard)
        pool.dispatch.enter(name, shard)
    for _ in range(3):
        pool.now += LOST_S / 2 + 1
        pool.dispatch.beat("m:b1")
        taken = pool.dispatch.take()
        if taken:
            break
    assert taken == [3]


def test_an_idle_actor_gets_what_another_one_has_not_begun(pool: Pool) -> None:
    """At the end of a job a busy, slow or lost actor holds no second shard, while others idle."""
    pool.works("n:a1", "m:b1")
    pool.scores("m:b1", *range(2, 10))
    for shard in range(2):
        assert pool.dispatch.hold("n:a1", shard) == "work"
    assert pool.dispatch.enter("n:a1", 0)
    for shard in range(2):
        pool.dispatch.begin("encode", shard)
        pool.dispatch.succeed("encode", shard)
    assert pool.dispatch.take() == []
    pool.now += IDLE_S
    assert pool.dispatch.take() == [1]
    assert pool.dispatch.hold("m:b1", 1) == "work"
    assert not pool.dispatch.enter("n:a1", 1)
    assert pool.dispatch.enter("m:b1", 1)
    assert pool.dispatch.hold("n:a1", 1) == "skip"


def test_a_shard_goes_to_another_actor_after_two_failures(pool: Pool) -> None:
    """And not back to the first; a pool of one keeps it."""
    pool.works("n:a1")
    assert not pool.fails("n:a1", 5)
    assert not pool.fails("n:a1", 5)
    pool.works("m:b1")
    assert pool.fails("n:a1", 5)
    assert pool.dispatch.take() == []
    pool.now += PAUSE_S
    assert pool.dispatch.take() == [5]
    assert pool.dispatch.hold("n:a1", 5) == "skip"
    pool.scores("m:b1", 5)


def test_failures_on_two_shards_retire_an_actor(pool: Pool) -> None:
    """Its next process on this node waits without an engine, and the reason is told."""
    pool.works("n:a1", "m:b1")
    pool.fails("n:a1", 0)
    pool.dispatch.start("n:a2", "a")
    pool.dispatch.started("n:a2")
    pool.fails("n:a2", 1, "ECC error")
    assert pool.dispatch.hold("n:a2", 2) == "again"
    assert pool.dispatch.start("n:a3", "a") == "park"
    health = pool.dispatch.health()
    assert (health.working, health.parked, health.ended) == (1, 1, 1)
    assert health.problems == ("n:a2: retired: ECC error",)
    assert 0 in (shards := pool.dispatch.take() or [])
    assert set(shards) <= {0, 1, 2}


def test_shards_that_succeed_elsewhere_count_against_the_first_actor(pool: Pool) -> None:
    """Errors that are not the engine's own retire an actor if others have no trouble with its shards."""
    pool.works("n:a1", "m:b1")
    for shard in (0, 1):
        pool.dispatch.hold("n:a1", shard)
        pool.dispatch.fail("score", shard, "RuntimeError: nan", is_engine=False)
        assert pool.dispatch.fail("score", shard, "RuntimeError: nan", is_engine=False)
        pool.scores("m:b1", shard)
    assert pool.dispatch.hold("n:a1", 2) == "again"


def test_a_shard_that_fails_everywhere_retires_nobody(pool: Pool) -> None:
    """Two such shards are the shards' fault."""
    pool.works("n:a1", "m:b1")
    for shard in (0, 1):
        for name in ("n:a1", "m:b1"):
            pool.fails(name, shard)
            pool.dispatch.release(name, shard)
        pool.dispatch.arrived(shard, has_failed=True)
    assert pool.dispatch.health().problems == ()


def test_the_last_actor_is_not_retired(pool: Pool) -> None:
    """Attempts at shards decide then."""
    pool.works("n:a1")
    for shard in range(4):
        pool.fails("n:a1", shard)
        pool.dispatch.release("n:a1", shard)
    assert pool.dispatch.hold("n:a1", 5) == "work"


def test_two_retired_actors_retire_their_node(pool: Pool) -> None:
    """Its other actors leave with their next shard, and none starts there."""
    pool.works("n:a1", "n:b1", "n:c1", "m:d1")
    for name, shards in {"n:a1": (0, 1), "n:b1": (2, 3)}.items():
        for shard in shards:
            pool.fails(name, shard)
    assert pool.dispatch.hold("n:c1", 4) == "again"
    assert pool.dispatch.hold("m:d1", 5) == "work"
    assert pool.dispatch.health().closed_nodes == {"n"}
    assert pool.dispatch.start("n:e1", "e") == "leave"


def test_a_node_is_closed_after_two_engines_that_do_not_start(pool: Pool) -> None:
    """Or after one with an error that stays; other nodes are not."""
    for name in ("n:a1", "n:b1"):
        assert pool.dispatch.start(name, name[2]) == "work"
    assert pool.dispatch.fail_start("n:a1", "no device", is_fatal=False) == "leave"
    assert pool.dispatch.health().closed_nodes == frozenset()
    assert pool.dispatch.fail_start("n:b1", "no device", is_fatal=False) == "leave"
    assert pool.dispatch.start("n:c1", "c") == "leave"
    assert pool.dispatch.start("m:d1", "d") == "work"
    assert pool.dispatch.fail_start("m:d1", "no such model", is_fatal=True) == "leave"
    assert pool.dispatch.health().closed_nodes == {"n", "m"}
    assert pool.dispatch.health().working == 0


def test_processes_that_die_while_they_start_close_a_node(pool: Pool) -> None:
    """Ray restarts them without end; one kill, or some with starts between them, is no reason."""
    for i in range(START_DEATHS):
        assert pool.dispatch.start(f"n:a{i}", "a") == "work"
    pool.dispatch.started(f"n:a{START_DEATHS - 1}")
    for i in range(START_DEATHS):
        assert pool.dispatch.start(f"n:b{i}", "b") == "work"
    assert pool.dispatch.start("n:b9", "b") == "leave"


def test_deaths_with_two_shards_retire_an_actor(pool: Pool) -> None:
    """One after a finished shard is the first again: machines that are short of memory kill now and then."""
    pool.works("n:a1", "m:b1")
    pool.takes("n:a1", 0)
    pool.works("n:a2")
    pool.scores("n:a2", 1)
    pool.takes("n:a2", 2)
    pool.works("n:a3")
    pool.takes("n:a3", 3)
    assert pool.dispatch.start("n:a4", "a") == "park"


def test_kills_now_and_then_retire_nobody(pool: Pool) -> None:
    """Though others finish the shards."""
    pool.works("n:a1", "m:b1")
    for i in range(1, 4):
        pool.takes(f"n:a{i}", i)
        pool.works(f"n:a{i + 1}")
        pool.scores("m:b1", i)
        pool.scores(f"n:a{i + 1}", i + 4)
    assert pool.dispatch.health().problems == ()


def test_a_shard_that_kills_twice_is_not_the_actors_fault(pool: Pool) -> None:
    """The third attempt is on another actor, whether the process was killed or its engine failed."""
    pool.works("n:a1", "m:b1")
    pool.takes("n:a1", 0)
    pool.works("n:a2")
    pool.takes("n:a2", 0)
    pool.works("n:a3")
    assert pool.dispatch.hold("n:a3", 0) == "skip"
    pool.fails("n:a3", 1)
    pool.works("n:a4")
    assert pool.dispatch.hold("n:a4", 1) == "work", "one failure was counted twice"


def test_a_run_ends_when_all_shards_have_arrived(pool: Pool) -> None:
    """Whatever a lost actor still has."""
    pool.works("n:a1")
    pool.scores("n:a1", *range(10))
    assert pool.dispatch.take() is None


def test_a_source_that_is_run_again_yields_the_same_shards(pool: Pool) -> None:
    """Ray runs it again where its process was killed, and skips as many rows as it had received."""
    pool.works("n:a1", "m:b1")
    pool.dispatch.hold("n:a1", 3)
    pool.works("n:a2")
    assert pool.dispatch.take(10) == [3]
    assert pool.dispatch.take(0) == [*range(10), 3]
    assert pool.dispatch.take(11) == []


def test_an_engine_that_does_not_start_again(pool: Pool) -> None:
    """Ray keeps the shards of an actor that has worked for its next process, which tries once more and then waits."""
    pool.works("n:a1", "m:b1")
    pool.dispatch.hold("n:a1", 3)
    assert pool.dispatch.start("n:a2", "a") == "work"
    assert pool.dispatch.fail_start("n:a2", "no device", is_fatal=False) == "again"
    assert pool.dispatch.start("n:a3", "a") == "work"
    assert pool.dispatch.fail_start("n:a3", "no device", is_fatal=False) == "park"
    assert pool.dispatch.health().parked == 1
    assert pool.dispatch.take() == [3]


def test_a_process_gets_a_shard_once_at_a_time(pool: Pool) -> None:
    """Ray repeats a shard for the next process of an actor, and the supervisor hands it out again as well."""
    pool.works("p:a1")
    assert pool.dispatch.hold("p:a1", 3) == "work"
    assert pool.dispatch.hold("p:a1", 3) == "skip"
    pool.dispatch.release("p:a1", 3)
    assert pool.dispatch.hold("p:a1", 3) == "work"
