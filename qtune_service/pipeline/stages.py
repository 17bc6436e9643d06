"""What happens to one shard: scan, encode, score, commit, prune. Thin functions that Ray Data maps.

Each takes and gives bytes (see cluster.py). Tables travel as pickled Arrow, so numpy columns are not copied item by
item. Heavy objects are made once a process: the tokenizer is cached, the model lives in the scoring actor.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from qtune_service.config import JobSpec
from qtune_service.core.metrics import TokenScores
from qtune_service.core.plane import Quadrant
from qtune_service.data import storage
from qtune_service.data.chat import Encoded, Encoder
from qtune_service.data.formats import RecordError
from qtune_service.data.reading import RecordProblem, read_shard
from qtune_service.data.shards import Chunk, Plan, Shard, scan
from qtune_service.pipeline.model_info import ModelInfo
from qtune_service.pipeline.output import Output
from qtune_service.pipeline.tables import (
    ENCODED_SCHEMA,
    REJECTED_SCHEMA,
    SCORES_RESERVED,
    pruned_rows,
    quadrant_rows,
    ragged,
    samples_of,
    with_scores,
)

RECORD_EXCERPT_CHARS = 2_000


@dataclass(frozen=True, slots=True)
class JobContext:
    """What every stage knows of the job. Small: the plan is read from the output, once a process."""

    spec: JobSpec
    model: ModelInfo
    engine: str
    """The chosen engine: vllm or reference."""
    threads: int = 1

    @property
    def output(self) -> Output:
        """Where the job writes."""
        return Output(self.spec.output.path)


@dataclass(frozen=True, slots=True)
class ShardTables:
    """A shard on its way: usable rows and rejected ones. read = rows of both."""

    rows: pa.Table
    rejected: pa.Table
    seconds: float = 0.0
    """Time in the engine."""


def scan_chunk(_index: int, payload: bytes, spec: JobSpec) -> bytes:
    """Look through one chunk of the input: counts, hash, format, schema."""
    return scan(Chunk.from_json(payload.decode()), spec.input, work=Output(spec.output.path).at("_qtune")).to_json().encode()


def encode_shard(index: int, _payload: bytes, context: JobContext) -> bytes:
    """Read a shard, render and tokenise its records; what cannot be used is set aside with its reason."""
    plan = _plan(context.output.root)
    shard = plan.shards[index]
    records = read_shard(plan, shard)
    usable = [i for i, record in enumerate(records.records) if not isinstance(record, RecordProblem)]
    results = _encoder(context).encode_batch([records.records[i] for i in usable], shard.format)
    encoded = [(i, r) for i, r in zip(usable, results, strict=True) if isinstance(r, Encoded)]
    problems = [(i, r.reason, r.detail) for i, r in enumerate(records.records) if isinstance(r, RecordProblem)]
    problems += [(i, r.reason, r.detail) for i, r in zip(usable, results, strict=True) if isinstance(r, RecordError)]
    rows = _encoded_table(records, encoded)
    rejected = _rejected_table(records, sorted(problems), context.spec.input.category_field)
    return pickle.dumps(ShardTables(rows, rejected))


class ScoreShard:
    """A scoring actor: one loaded model."""

    def __init__(self, context: JobContext) -> None:
        os.environ["OMP_NUM_THREADS"] = str(context.threads)
        from qtune_service.scoring.choose import build_scorer

        model = context.spec.model.model_copy(update={"max_model_len": context.model.max_model_len})
        self._scorer = build_scorer(model, context.spec.engine.model_copy(update={"name": context.engine}))

    def __call__(self, _index: int, payload: bytes) -> bytes:
        from qtune_service.scoring.isolate import score_isolating

        tables: ShardTables = pickle.loads(payload)  # noqa: S301 - written by `encode_shard` of this job
        started = time.perf_counter()
        scores = score_isolating(self._scorer, samples_of(tables.rows))
        seconds = time.perf_counter() - started
        reasons = [_why_unusable(s) for s in scores]
        good = np.array([r is None for r in reasons], dtype=bool)
        rows = with_scores(tables.rows.filter(pa.array(good)), [s for s in scores if isinstance(s, TokenScores) and _is_finite(s)])
        poisoned = [(i, *r) for i, r in enumerate(reasons) if r is not None]
        rejected = pa.concat_tables([tables.rejected, _poisoned_table(tables.rows, poisoned)])
        return pickle.dumps(ShardTables(rows, rejected, seconds))


def commit_shard(index: int, payload: bytes, context: JobContext) -> bytes:
    """Write a scored shard: rejected rows, scores, and last the marker that makes it count."""
    tables: ShardTables = pickle.loads(payload)  # noqa: S301 - written by `ScoreShard` of this job
    files = []
    if tables.rejected.num_rows:
        files.append(_write(context.output, "rejected", index, tables.rejected))
    files.append(_write(context.output, "scores", index, tables.rows))
    marker = {
        "read": tables.rows.num_rows + tables.rejected.num_rows,
        "scored": tables.rows.num_rows,
        "rejected": tables.rejected.num_rows,
        "reasons": _counts(tables.rejected["reason"]),
        "truncated": int(np.count_nonzero(tables.rows["truncated"].to_numpy())),
        "tokens": int(len(ragged(tables.rows["input_ids"]).flat)),
        "trained_tokens": int(tables.rows["num_tokens"].to_numpy().sum()),
        "engine_seconds": tables.seconds,
        "files": files,
    }
    context.output.mark("scored", index, marker)
    return json.dumps(marker).encode()


def prune_shard(index: int, payload: bytes, context: JobContext, names: dict[str, str]) -> bytes:
    """Write a shard's quadrants and its pruned rows, and count them by source and category."""
    labels, error_rank, entropy_rank = pickle.loads(payload)  # noqa: S301 - written by the driver of this job
    spec, output = context.spec, context.output
    assert spec.prune is not None
    scores = storage.read_table(output.part("scores", index))
    pruned = pruned_rows(scores, labels, spec.prune, names)
    files = [
        _write(output, "quadrants", index, quadrant_rows(scores, labels, error_rank, entropy_rank)),
        _write(output, "pruned", index, pruned),
    ]
    kept = pruned["qtune"].combine_chunks()
    tokens_kept, tokens_removed = (int(np.sum(kept.field(n).to_numpy(zero_copy_only=False))) for n in ("tokens_kept", "tokens_removed"))
    category = spec.input.category_field
    q2_lengths = scores["num_tokens"].to_numpy()[labels == Quadrant.Q2]
    marker = {
        "kept": pruned.num_rows,
        "tokens_before": tokens_kept + tokens_removed,
        "tokens_after": tokens_kept,
        "q2_lengths": _histogram(q2_lengths),
        "by_source": _tally(scores["source"], labels),
        "by_category": _tally(scores[category], labels) if category in scores.column_names else {},
        "files": files,
    }
    output.mark("pruned", index, marker)
    return json.dumps(marker).encode()


# --- per process


@functools.lru_cache(maxsize=4)
def _plan(root: str) -> Plan:
    return Plan.from_json(storage.read_bytes(Output(root).at("_qtune", "plan.json")).decode())


def _encoder(context: JobContext) -> Encoder:
    return _cached_encoder(context.spec.model.model_dump_json(), context.spec.input.model_dump_json(), context)


_ENCODERS: dict[tuple[str, str, int], Encoder] = {}


def _cached_encoder(model: str, input_spec: str, context: JobContext) -> Encoder:
    key = (model, input_spec, context.model.max_model_len)
    if key not in _ENCODERS:
        _ENCODERS[key] = Encoder(
            context.spec.model,
            context.spec.input,
            max_model_len=context.model.max_model_len,
            vocab_size=context.model.vocab_size,
        )
    return _ENCODERS[key]


# --- tables
