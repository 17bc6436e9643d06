"""The stall watch: its sentences, from states of actors and a cluster, and their way to the sinks."""

from __future__ import annotations

import io
import json
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from qtune_service.config import EngineSpec
from qtune_service.ingest.discovery import SourceFile
from qtune_service.ingest.plan import Chunk
from qtune_service.pipeline.actor_states import ActorState, ActorStates, Phase
from qtune_service.pipeline.cluster_state import ClusterState, Node
from qtune_service.pipeline.executor import LocalExecutor, Pool
from qtune_service.pipeline.progress import (
    MAX_PROBLEM_CHARS,
    MAX_PROBLEMS,
    FileSink,
    Observation,
    PlainSink,
    Snapshot,
    Tracker,
    describe,
)
from qtune_service.pipeline.retries import LocalSupervisor, Supervisor
from qtune_service.pipeline.stall_watch import (
    ScoringLook,
    Waiting,
    duration,
    reading_text,
    steps_look,
    watching,
    what_scoring_waits_for,
)
from tests.jobs import DEMO_MODEL
from tests.waiting import wait_until

GPUS, TP8, CPUS = Pool(8, None, 1, 1, 1), Pool(2, 2, 1, 8, 1), Pool(1, 1, 3, 0, 3)
SPREAD = Pool(1, 1, 1, 0, 1, bundles=({"GPU": 1.0, "CPU": 1.0},) * 8)


def node(gpus: float, free_gpus: float, cpus: float = 64, free_cpus: float = 64) -> Node:
    """Return a node."""
    return Node({"GPU": gpus, "CPU": cpus}, {"GPU": free_gpus, "CPU": free_cpus}, "host-1")


def cluster(*nodes: Node, placed: Sequence[str] = (), unplaced: int = 8, **others: float) -> ClusterState:
    """Return a cluster whose nodes are n0, n1, ..."""
    return ClusterState({f"n{i}": one for i, one in enumerate(nodes)}, frozenset(placed), unplaced, others)  # type: ignore[arg-type]


def actors(phase: Phase, number: int = 1, **more: Any) -> list[ActorState]:
    """Return actors in one phase."""
    return [ActorState(f"n0:{i}", phase, **more) for i in range(number)]


def says(
    present: Sequence[ActorState], state: ClusterState | None, pool: Pool = GPUS, wanted: int = 8, quiet_s: float = 0
) -> str:
    """Return the sentence of a state without its duration."""
    waiting = what_scoring_waits_for(present, state, pool, wanted, quiet_s, stall_s=1800)
    return "" if waiting is None else waiting.text


@pytest.mark.parametrize(
    ("state", "pool", "wanted", "sentence"),
    [
        (cluster(), GPUS, 8, "waiting for 8 GPUs (0 of 8)"),
        (cluster(node(0, 0)), GPUS, 8, "waiting for 8 GPUs (0 of 8)"),
        (cluster(node(4, 4)), GPUS, 8, "waiting for 8 GPUs (4 of 8)"),
        (cluster(node(8, 0), GPU=8), GPUS, 8, "waiting for 8 GPUs (0 of 8; 8 in use by other jobs)"),
        (cluster(node(16, 5), GPU=11), GPUS, 8, "waiting for 8 GPUs (5 of 8; 11 in use by other jobs)"),
        (cluster(node(4, 4), node(4, 4)), TP8, 2, "waiting for 16 GPUs (0 of 16; the largest node has 4)"),
        (cluster(node(4, 4), node(4, 0), GPU=4), SPREAD, 1, "waiting for 8 GPUs (0 of 8; 4 in use by other jobs)"),
        (cluster(node(4, 4), node(4, 4)), SPREAD, 1, "starting the process of 1 actor"),
        (cluster(node(8, 8, 8, 0), CPU=8), GPUS, 8, "waiting for 8 CPUs (0 of 8; 8 in use by other jobs)"),
        (cluster(node(0, 0, 2, 2)), CPUS, 1, "waiting for 3 CPUs (0 of 3; the largest node has 2)"),
        (cluster(node(0, 0, 4, 1), unplaced=1, CPU=3), CPUS, 1, "waiting for 3 CPUs (0 of 3; 3 in use by other jobs)"),
        (cluster(node(8, 8)), GPUS, 8, "starting the processes of 8 actors"),
        (cluster(node(8, 0)), GPUS, 8, "waiting for 8 GPUs (0 of 8; 8 in use)"),
        (cluster(node(8, 0), placed="abcdefgh", unplaced=0), GPUS, 8, "starting the processes of 8 actors"),
        (cluster(node(0, 0, 4, 4), unplaced=0), CPUS, 1, "waiting for the first encoded shard"),
        (None, CPUS, 1, "waiting for the first encoded shard"),
    ],
)
def test_without_actors_the_sentence_names_what_is_missing(
    state: ClusterState | None, pool: Pool, wanted: int, sentence: str
) -> None:
    """Nodes that are not there, other jobs' actors, nodes that are too small, or nothing."""
    assert says([], state, pool, wanted) == sentence


def test_loading_is_told_from_waiting() -> None:
    """Actors that load name their node, a download if it is known, and how many are missing."""
    full = cluster(node(8, 0), placed=[f"n0:{i}" for i in range(8)], unplaced=0)
    assert says(actors("starting", 8, phase_s=720), full) == "8 actors are loading the model on host-1"
    fetching = actors("starting", 1, phase_s=9, detail="fetching s3://models/m (3 of 140 GB)")
    one = cluster(node(1, 0), placed=["n0:0"], unplaced=0)
    assert says(fetching, one, wanted=1) == "1 actor is fetching s3://models/m (3 of 140 GB) on host-1"
    some = says(actors("starting", 2), cluster(node(2, 0), placed=["n0:0", "n0:1"], unplaced=6))
    assert some == "2 actors are loading the model on host-1; waiting for 6 more GPUs (2 of 8)"
    waiting = what_scoring_waits_for(actors("starting", 8, phase_s=720), full, GPUS, 8, 0, 1800)
    assert waiting is not None
    assert waiting.seconds == 720, "the age is the supervisor's"


def test_a_long_shard_is_told_from_an_actor_that_hangs() -> None:
    """A shard whose samples end is long. An actor without a finished sample for longer than the limit hangs."""
    state = cluster(node(8, 0), placed=["n0:0", "n0:1"])
    scoring = [
        ActorState("n0:0", "scoring", age_s=3, shard=7, phase_s=840),
        ActorState("n0:1", "scoring", age_s=4, shard=8, phase_s=8),
    ]
    assert says(scoring, state, quiet_s=10) == "", "progress"
    assert says(scoring[:1], state, quiet_s=840) == "scoring shard 7 on host-1"
    assert says(scoring, state, quiet_s=840) == "2 actors are scoring long shards, the longest: shard 7"
    silent = [ActorState("n0:0", "scoring", age_s=1900, shard=7, phase_s=2000)]
    assert says(silent, state, quiet_s=1900) == "no scoring actor has finished a sample: shard 7 on host-1"
    assert says([*silent, *scoring], state, quiet_s=10) == "", "others make progress"
    assert says(actors("idle", 2), state, quiet_s=30) == "2 actors without work: shards are being encoded or written"


def test_ages_are_of_one_clock() -> None:
    """Since the beginning of the phase, and since the last finished sample."""
    now = [0.0]
    states = ActorStates(clock=lambda: now[0])
    states.set("a:1", "scoring", 5)
    now[0] = 10.0
    states.moved(5)
    now[0] = 12.0
    (state,) = states.all()
    assert (state.phase_s, state.age_s, state.node) == (12.0, 2.0, "a")
    states.set("b:1", "starting")
    states.describe("b:1", "downloading")
    states.describe("nobody", "downloading")
    assert [state.detail for state in states.all()] == ["", "downloading"]
    states.set("b:1", "idle")
    assert [state.detail for state in states.all()] == ["", ""], "of the phase that has ended"


class Shown(list[Snapshot]):
    """A sink that keeps snapshots."""

    def show(self, snapshot: Snapshot) -> None:
        """Keep it."""
        self.append(snapshot)

    def say(self, text: str) -> None:
        """Ignore text."""

    def close(self) -> None:
        """Do nothing."""


class Scene(LocalExecutor):
    """An executor with a scripted cluster."""

    state: ClusterState | None = None

    def cluster_state(self) -> ClusterState | None:  # type: ignore[override]
        """Return the script's."""
        return self.state


def test_a_hanging_actor_is_reported_once_with_its_node_and_shard() -> None:
    """In the log, in the problems, and again when it continues. Actors of lost nodes count no more."""
    now, said = [0.0], list[str]()
    supervisor, scene = Supervisor(), Scene()
    supervisor._actors = ActorStates(clock=lambda: now[0])
    scene.state = cluster(node(2, 0), placed=["n0:11", "n0:12"], unplaced=0)
    for actor, shard in (("n0:11", 1), ("n0:12", 2), ("gone:13", 3)):
        supervisor.set_actor(actor, "scoring", shard)
    look = ScoringLook(scene, LocalSupervisor(supervisor), Pool(2, 2, 1, 1, 1), 9, 60, said.append)
    now[0] = 50.0
    supervisor.report(2, 100)
    now[0] = 70.0
    for _ in range(3):
        waiting, seen = look(5)
    assert waiting is None, "the other actor makes progress"
    assert seen.actors == 2
    assert seen.phases == {"scoring": 2}
    assert seen.problems == ("actor n0:11 on host-1 has finished no sample of shard 1 for 70 s",)
    (warning,) = said
    assert warning.startswith("warning: actor n0:11 on host-1 has finished no sample of shard 1 for 70 s.")
    assert "end process 11 on host-1" in warning
    supervisor.report(1, 100)
    assert look(5)[1].problems == ()
    assert said[1:] == ["actor n0:11 no longer hangs in shard 1"]


def test_failed_actors_are_counted_and_their_problems_stay() -> None:
    """In all stages that follow, after those that hang now, and cut to what a server accepts."""
    supervisor, scene, shown = Supervisor(), Scene(), Shown()
    scene.state = cluster(node(2, 1), placed=["n0:2"], unplaced=0)
    supervisor.set_actor("n0:1", "failed", None, "CUDA error")
    supervisor.set_actor("n0:2", "idle")
    _, seen = ScoringLook(scene, LocalSupervisor(supervisor), GPUS, 9, 60, print)(0)
    assert (seen.actors, seen.phases) == (1, {"failed": 1, "idle": 1})
    tracker = Tracker(shown)
    tracker.stage("score", 9)
    tracker.report_problems(("n0:1: CUDA error",))
    tracker.observe(Observation(problems=("actor n0:2 hangs",)))
    assert list(shown[-1].problems) == ["actor n0:2 hangs", "actor n0:1: CUDA error"]
    tracker.report_problems(("n0:1: CUDA error", *("x" * 10_000 for _ in range(200))))
    tracker.stage("prune", 9)
    assert len(shown[-1].problems) == MAX_PROBLEMS
    assert all(len(one) <= MAX_PROBLEM_CHARS + 3 for one in shown[-1].problems)
    assert shown[-1].problems[-1] == "152 more"


def test_other_stages_wait_for_cpus_or_name_what_takes_long() -> None:
    """Another job's actors may hold all CPUs, and a cluster may have none."""
    scene = Scene()

    def sentence(state: ClusterState | None) -> str:
        scene.state = state
        waiting, _ = steps_look(scene, 0.5, lambda: ("steps", "no shard has been pruned"))(90)
        assert waiting is not None
        return waiting.text

    assert sentence(None) == "no shard has been pruned"
    assert sentence(cluster(node(0, 0, 4, 0), CPU=1)) == "no shard has been pruned", "its own tasks use the CPUs"
    assert sentence(cluster(node(0, 0, 4, 0), CPU=4)) == "waiting for 0.5 CPU (4 in use by other jobs)"
    assert sentence(cluster(node(0, 0, 0, 0))) == "waiting for 0.5 CPU (the cluster has 0)"
    lacking = replace(cluster(node(8, 8)), lacks_cpu_nodes=True)
    assert sentence(lacking) == "waiting for a node for CPU work (0 of 1)"
    assert steps_look(scene, 0.5, lambda: ("steps", "x"))(3)[0] is None, "not yet"


def test_reading_names_the_largest_file() -> None:
    """A compressed file is read in one piece, and the sentence says so."""
    files = [
        SourceFile("file:///d/small.jsonl", "jsonl", None, 1000, ""),
        SourceFile("file:///d/huge.jsonl.gz", "jsonl", "gz", 12_300_000_000, ""),
    ]
    chunks = [Chunk(i, i, file, 0, file.size_bytes, 1 << 24) for i, file in enumerate(files)]
    text = reading_text(chunks)
    assert re.fullmatch(r"reading \S*huge.jsonl.gz \(12.3 GB, compressed, so in one piece\) and 1 more part", text)
    assert reading_text([]) == "making the plan"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (90, "90 s"), (41 * 60 + 5, "41 min"), (3 * 3600 + 300, "3 h 05 min")]
)
def test_durations(seconds: float, text: str) -> None:
    """Seconds, minutes, then hours."""
    assert duration(seconds) == text


# --- the way to the sinks


def test_rates_and_eta_do_not_freeze() -> None:
    """They follow a job that stands still. Time without actors is left out of the rate."""
    now, shown = [0.0], Shown()

    tracker = Tracker(shown, clock=lambda: now[0])
    tracker.stage("score", 100, unit="samples", actors_wanted=8)
    now[0] = 3600.0
    tracker.observe(Observation("waiting for 8 GPUs (0 of 8), 60 min", "resources", 3600.0))
    assert (shown[-1].eta_s, shown[-1].waiting_s) == (None, 3600.0)
    now[0] = 3610.0
    tracker.advance(10, tokens=100)
    assert (shown[-1].per_s, shown[-1].eta_s, shown[-1].waiting) == (1.0, 90.0, "")
    for now[0] in (3620.0, 3640.0, 3700.0):
        tracker.observe(Observation(actors=2, phases={"scoring": 2}))
    assert (shown[-1].per_s, shown[-1].eta_s, shown[-1].tokens_per_s) == (0.1, 900.0, 1.0)
    assert tracker.quiet_s == 90.0
    assert describe(shown[-1]).endswith("ETA 0:15:00 · 2 of 8 actors")


def test_a_sentence_is_shown_while_a_block_runs_and_not_after() -> None:
    """Its duration grows. A look that fails is repeated."""
    shown, tries = Shown(), [0]

    def look(_quiet_s: float) -> tuple[Waiting | None, Observation]:
        tries[0] += 1
        if tries[0] % 2:
            raise ConnectionError("no answer")
        return Waiting("resources", "waiting for 8 GPUs (0 of 8)"), Observation(actors=1)

    tracker = Tracker(shown)
    tracker.stage("score", 10, actors_wanted=8)
    with watching(tracker, look, every_s=0.02):
        wait_until(lambda: shown[-1].waiting == "waiting for 8 GPUs (0 of 8), 3 s", 20)
    assert (shown[-1].waiting, shown[-1].waiting_s, shown[-1].actors) == ("", 0.0, 1)
    assert not [thread for thread in threading.enumerate() if thread.name == "stall watch"]


def test_a_log_is_not_flooded_while_a_job_waits() -> None:
    """A line for each change, and ever longer pauses between those that differ in time alone."""
    stream = io.StringIO()
    sink = PlainSink(Console(file=stream, width=200), every_s=0.05)
    ended_s, count = time.monotonic() + 1.6, 0
    while time.monotonic() < ended_s:
        count += 1
        sink.show(Snapshot("score", total=9, actors_wanted=8, waiting=f"w, {count} s", waiting_for="resources"))
        time.sleep(0.005)
    lines = stream.getvalue().splitlines()
    assert 4 <= len(lines) <= 6, "after 0, 0.1, 0.3, 0.7 and 1.5 s"
    time.sleep(0.06)
    sink.show(Snapshot("score", total=9, actors=1, actors_wanted=8, waiting="l, 1 s", waiting_for="loading"))
    assert stream.getvalue().splitlines()[-1] == "score: 0/9 samples · 1 of 8 actors · l, 1 s", "news is shown"


def test_progress_json_has_the_sentence_and_its_age() -> None:
    """The heartbeat writes the latest one, and names the attempt."""
    bodies: list[bytes] = []
    sink = FileSink(bodies.append, heartbeat_s=0.05, attempt="J:2")
    for seconds in (1, 2, 3):
        text = f"waiting for 8 GPUs (0 of 8), {seconds} s"
        sink.show(Snapshot("score", total=9, waiting=text, waiting_for="resources", waiting_s=float(seconds)))
    wait_until(lambda: json.loads(bodies[-1])["waiting_s"] == 3.0)
    sink.close()
    body = json.loads(bodies[-1])
    assert (body["waiting"], body["attempt"]) == ("waiting for 8 GPUs (0 of 8), 3 s", "J:2")
    assert len(bodies) < 20


def test_the_local_executor_reports_its_engine() -> None:
    """Loading and scoring are known without Ray."""
    from qtune_service.pipeline.executor import Stage

    executor = LocalExecutor()
    retries = executor.retry_policy(1)
    seen: list[list[ActorState]] = []

    class Actor:
        def __init__(self) -> None:
            seen.append(retries.supervisor.call("actors"))

        def __call__(self, _shard: int, value: int) -> int:
            seen.append(retries.supervisor.call("actors"))
            return value

    stage = Stage("score", Actor, pool=executor.size_pool(EngineSpec()))
    assert [r.value for r in executor.run([(4, 1)], stage, retries=retries)] == [1]
    seen.append(retries.supervisor.call("actors"))
    assert [[(s.phase, s.shard) for s in states] for states in seen] == [
        [("starting", None)],
        [("scoring", 4)],
        [("idle", None)],
    ]


def test_fetching_a_model_is_told_from_loading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An actor reports what it does before its engine runs."""
    from qtune_service.config import JobSpec
    from qtune_service.pipeline.score_shard import ScoreShard
    from qtune_service.pipeline.stages import JobContext
    from qtune_service.scoring.model_config import describe_model

    spec = JobSpec.model_validate({"input": {"paths": ["a"]}, "model": {"name": DEMO_MODEL}, "output": {"path": "o"}})
    retries = LocalExecutor().retry_policy(1)
    context = JobContext(spec, describe_model(spec.model), retries=retries, process_name=lambda: "n0:1")
    retries.supervisor.send("set_actor", "n0:1", "starting")
    details: list[str] = []

    def note(*_: object) -> Any:
        details.extend(state.detail for state in retries.supervisor.call("actors"))
        return (None, None)

    monkeypatch.setattr(JobContext, "engine", note)
    info = SimpleNamespace(name="a", version="1", dtype="float32")
    monkeypatch.setattr(ScoreShard, "_build", lambda *_: note() and SimpleNamespace(info=info))
    ScoreShard(context)
    assert details == ["fetching or checking the model's files", ""]
