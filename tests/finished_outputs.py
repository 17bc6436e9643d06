"""Small finished outputs, made by real jobs without Ray: scored, and then pruned.

Records, tokenizer, masks, thresholds and files are real; scores are drawn, by an engine of one's own, so that no model
is loaded. Equal texts have equal scores, so there are ties.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.errors import EngineError
from qtune_service.output.reader import FinishedOutput
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.progress import Snapshot
from qtune_service.pipeline.run import run_job
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import EngineInfo
from tests.jobs import DEMO_DATA, DEMO_MODEL, write_jsonl

NUM_SAMPLES = 120
SHARD_BYTES = 8192


class DrawnScorer:
    """Scores that depend on the tokens of a sample only."""

    info = EngineInfo("drawn", "1", "cpu", "float32", "Qwen2ForCausalLM", 512, 1024)

    def __init__(self, _model: ModelSpec, _engine: EngineSpec) -> None: ...

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Score samples in order. A few tokens of a sample are hard."""
        return [self._one(sample) for sample in samples]

    def _one(self, sample: Sample) -> TokenScores:
        size = int(sample.loss_mask[1:].sum())
        rng = np.random.default_rng(int(sample.input_ids.astype(np.int64) @ np.arange(1, len(sample.input_ids) + 1)))
        return TokenScores(*rng.gamma(0.5, 1.0 + rng.random((2, 1)), (2, size)).astype(np.float32))

    def close(self) -> None:
        """Nothing is held."""


class DeadScorer(DrawnScorer):
    """An engine that dies with its second call, once. Tests set `calls` to 0 before."""

    calls = 0

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Score, except for the second call."""
        DeadScorer.calls += 1
        if DeadScorer.calls == 2:
            raise EngineError("the engine died")
        return super().score(samples)


@dataclass(frozen=True, slots=True)
class FinishedOutputs:
    """The same samples, scored only, and pruned."""

    scored: FinishedOutput
    pruned: FinishedOutput


def make_outputs(folder: Path) -> FinishedOutputs:
    """Make both outputs from NUM_SAMPLES samples in several shards and three bad records."""
    data = write_jsonl(folder / "data.jsonl", demo_records())
    with data.open("a") as file:
        file.write('{"id": "broken"\n')
    scored = score(_spec(data, folder / "scored"))
    return FinishedOutputs(scored, prune(scored, folder / "pruned", PruneSpec(sample_keep_ratio=0.4)))


def demo_records() -> list[dict[str, Any]]:
    """Demo records with columns that are hard to name and to hold, and two that cannot be used."""
    lines = DEMO_DATA.read_text().splitlines()[:NUM_SAMPLES]
    records: list[dict[str, Any]] = [json.loads(line) for line in lines]
    for i, record in enumerate(records):
        record["Entropy"] = i % 7  # by another case a column of ours
        record["meta"] = {"a": i} if i % 2 else "none"  # two kinds: JSON text in scores/
    silent = {"id": "silent", "messages": [{"role": "user", "content": "Hello?"}], "category": "small_talk"}
    empty = {"id": "empty", "messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": ""}]}
    return [*records, silent, empty]


def _spec(data: Path, out: Path) -> JobSpec:
    return JobSpec(
        input=InputSpec(paths=(str(data),), category_field="category", shard_bytes=SHARD_BYTES),
        model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
        engine=EngineSpec(name="tests.finished_outputs:DrawnScorer"),
        prune=None,
        output=OutputSpec(path=str(out)),
    )


def chats(number: int) -> list[dict[str, Any]]:
    """Conversations of one to three rounds, with fields of their own; their texts are hard to show."""
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
    return [
        {
            "id": f"chat-{i:04}",
            "messages": [
                turn for k in range(1 + i % 3) for turn in _round(f"{i}.{k}", words[(i + k) % len(words)], i % 5)
            ],
            "topic": ("north", "south")[i % 2],
            "score": i / 7,
        }
        for i in range(number)
    ]


def _round(name: str, word: str, more: int) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Question {name}: where can I find a dalox?"},
        {"role": "assistant", "content": f"Answer {word} {'and so on ' * more}{name}."},
    ]


def finished_output(
    folder: Path,
    records: Sequence[dict[str, Any]],
    *,
    prune_by: Mapping[str, Any] | None,
    more: Sequence[Path] = (),
    chat_template: str | None = None,
) -> FinishedOutput:
    """Any records, scored in many small shards and, unless `prune_by` is None, pruned: the output FOLDER/out.

    more: other inputs behind them.
    """
    data = write_jsonl(folder / "data.jsonl", list(records))
    is_pruned = prune_by is not None
    spec = JobSpec(
        input=InputSpec(paths=(str(data), *map(str, more)), shard_bytes=4096, chat_template=chat_template),
        model=ModelSpec(name=DEMO_MODEL),
        engine=EngineSpec(name="tests.finished_outputs:DrawnScorer"),
        prune=None,
        output=OutputSpec(path=str(folder / ("scored" if is_pruned else "out"))),
    )
    scored = score(spec)
    return prune(scored, folder / "out", PruneSpec.model_validate(prune_by)) if is_pruned else scored


def score(spec: JobSpec) -> FinishedOutput:
    """Run a job that only scores."""
    run_job(spec, SilentSink(), executor=LocalExecutor())
    return FinishedOutput(spec.output.path)


def prune(scored: FinishedOutput, out: Path, how: PruneSpec) -> FinishedOutput:
    """Run a job from the scores of another."""
    return score(
        scored.spec.model_copy(update={"prune": how, "output": OutputSpec(path=str(out)), "from_scores": scored.root})
    )


class SilentSink:
    """Shows nothing."""

    def show(self, snapshot: Snapshot) -> None:
        """Ignore progress."""

    def say(self, text: str) -> None:
        """Ignore a line."""

    def close(self) -> None:
        """Hold nothing."""
