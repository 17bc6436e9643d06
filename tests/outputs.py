"""Finished outputs for tests of what comes after a job: made by the job's own stages, one after the other, without Ray.

Only the engine is a stand-in: it makes scores up, from the tokens alone, so that the same records give the same output.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.core.hashing import uniform
from qtune_service.core.metrics import Sample, TokenScores
from qtune_service.data import storage
from qtune_service.data.plan import Plan
from qtune_service.data.shards import make_plan, scan, split
from qtune_service.data.sources import discover
from qtune_service.outputs.finished import FinishedOutput
from qtune_service.outputs.folder import Output
from qtune_service.pipeline.finish import finish_pruned, finish_scored
from qtune_service.pipeline.group_tasks import Ground
from qtune_service.pipeline.origin import save_tokenizer
from qtune_service.pipeline.population import Population, ScoreShards
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.report_data import Pruned
from qtune_service.pipeline.scored import Scored, summarise
from qtune_service.pipeline.stages import JobContext, ScoreShard, commit_shard, encode_shard, prepare, prune_shard
from qtune_service.pipeline.tables import own_names, pruned_names
from qtune_service.pipeline.thresholds import find_thresholds
from qtune_service.scoring.base import EngineInfo, Watch, never
from tests.jobs import DEMO_MODEL, write_jsonl

Record = dict[str, Any]


class Guessing:
    """Makes scores up: a level for each sample and each kind of score, and noise for each token."""

    info = EngineInfo("guessing", "1", "cpu", "float32", "None", 512, 1024)

    def score(self, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores]:  # noqa: ARG002 - the contract
        """Scores of n trained tokens a sample, in nats."""
        return [self._guess(sample) for sample in samples]

    def _guess(self, sample: Sample) -> TokenScores:
        ids = np.asarray(sample.input_ids, np.int64)
        positions = np.flatnonzero(np.asarray(sample.loss_mask)[1:]) + 1
        level = uniform(1, np.full(2, int(ids.sum())), np.arange(2))  # (2,)
        noise = uniform(2, ids[positions], positions + int(ids.sum()))
        return TokenScores(
            (4 * level[0] * (0.2 + noise)).astype(np.float32), (3 * level[1] * (0.5 + noise)).astype(np.float32)
        )

    def close(self) -> None:
        """Nothing is held."""


def guessing(_model: ModelSpec, _engine: EngineSpec) -> Guessing:
    """The engine `tests.outputs:guessing`."""
    return Guessing()


def chats(number: int) -> Iterator[Record]:
    """Conversations of one to three rounds, with fields of their own, among them what is hard to show."""
    words = (
        "gardens",
        "naïve café",
        "你好世界",
        "🙂 fine",
        "مرحبا بالعالم",
        "<b>bold</b>",
        "a\tb",
        "two\nlines",
        "x" * 40,
    )
    for i in range(number):
        turns = []
        for k in range(1 + i % 3):
            turns += [
                {"role": "user", "content": f"Question {i}.{k}: where can I find a dalox?"},
                {"role": "assistant", "content": f"Answer {words[(i + k) % len(words)]} {'and so on ' * (i % 5)}{i}."},
            ]
        yield {"id": f"chat-{i:04}", "messages": turns, "topic": ("north", "south")[i % 2], "score": i / 7}


def finished_output(
    folder: Path, records: Sequence[Record], *, prune: Mapping[str, Any] | None, shard_bytes: int = 4096
) -> FinishedOutput:
    """Score and prune records; `prune` is None for scores only."""
    data = write_jsonl(folder / "data.jsonl", list(records))
    spec = JobSpec(
        input=InputSpec(paths=(str(data),), shard_bytes=shard_bytes),
        model=ModelSpec(name=DEMO_MODEL),
        engine=EngineSpec(name="tests.outputs:guessing"),
        prune=None if prune is None else PruneSpec.model_validate(prune),
        output=OutputSpec(path=str(folder / "out")),
    )
    context, encoder = prepare(spec)
    save_tokenizer(encoder, context.output)
    scored = _score(context, _plan(spec), encoder.template_description)
    if spec.prune is None:
        finish_scored(spec, context.output, scored, Tracker())
    else:
        _prune(spec, spec.prune, context.output, scored)
    return FinishedOutput(context.output.root)


def _plan(spec: JobSpec) -> Plan:
    output = Output(spec.output.path)
    files = discover(spec.input.paths)
    chunks = split(files, spec.input)
    scans = [scan(chunk, spec.input, work=output.at("_qtune", "input")) for chunk in chunks]
    plan = make_plan(files, chunks, scans, spec.input)
    storage.write_bytes(output.at("_qtune", "plan.json"), plan.to_json().encode())
    return plan


def _score(context: JobContext, plan: Plan, template: str) -> Scored:
    score = ScoreShard(context)
    markers = {}
    for index in range(len(plan.shards)):
        markers[index] = json.loads(commit_shard(index, score(index, encode_shard(index, b"", context)), context))
    return summarise(
        markers,
        template=template,
        own_columns={name: own for own, name in own_names(plan).items()},
        renamed=pruned_names(plan),
        category_column=None,
        performance={},
    )


def _prune(spec: JobSpec, prune: PruneSpec, output: Output, scored: Scored) -> None:
    verdict = find_thresholds(
        Population.of(ScoreShards(output.root), scored.shards),
        prune,
        rule=None,
        workers=_no_workers,
        folder=output.at("_qtune", "ranks"),
        advance=lambda _: None,
    )
    markers = {}
    for shard, (group, span) in verdict.shards().items():
        payload = pickle.dumps(verdict.of_shard(group, span))
        markers[shard] = json.loads(prune_shard(shard, payload, spec, scored.renamed, scored.category_column))
    finish_pruned(spec, output, scored, Pruned(verdict, markers), Tracker())


def _no_workers(_items: Sequence[tuple[int, bytes]], _ground: Ground) -> Iterator[tuple[int, bytes]]:
    raise AssertionError("a small population is selected at once")
