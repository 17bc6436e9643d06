"""Show the first samples of a job as the model will see them, before the job runs.

The code that encodes a job's shards encodes these, so text, tokens and mask are those of the job. At most MAX_RECORDS
records are read, and no weights. A sample with more than 2 x SHOWN_TOKENS tokens is shown with that many from its
beginning and from its end.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from qtune_service.config import JobSpec
from qtune_service.ingest.jsonl import RecordProblem, encode_value
from qtune_service.ingest.reader import FirstRecord, first_records
from qtune_service.ingest.records import HINTS, RecordError
from qtune_service.report.token_view import token_texts
from qtune_service.scoring.model_config import ModelInfo, describe_model
from qtune_service.tokenize.encoded_batch import Encoded
from qtune_service.tokenize.encoder import Encoder

MAX_RECORDS = 200
SHOWN_TOKENS = 1000
SHOWN_REJECTED = 20
EXCERPT_CHARS = 500


@dataclass(frozen=True, slots=True)
class PreviewSample:
    """A sample. Lists run in parallel. `num_...` count the whole sample, including a middle that is not shown."""

    id: str
    source: str
    line: int
    text: str
    tokens: list[str]
    token_ids: list[int]
    loss_mask: list[int]
    num_tokens: int
    num_trained: int
    num_left_out: int
    """Tokens of its middle that are not shown, after the first SHOWN_TOKENS."""
    truncated: bool
    """Whether it was cut to the model's length."""


@dataclass(frozen=True, slots=True)
class PreviewRejected:
    """A record that a job would reject."""

    id: str
    source: str
    line: int
    reason: str
    detail: str
    hint: str
    record: str


@dataclass(frozen=True, slots=True)
class Preview:
    """The first samples and rejected records of a job."""

    samples: list[PreviewSample]
    rejected: list[PreviewRejected]
    warnings: list[str]
    template: str
    """The chat template that renders, and its limits."""


def preview(spec: JobSpec, count: int) -> Preview:
    """Return the first `count` samples of a job. Raise DataError and ModelError."""
    records = first_records(spec.input, MAX_RECORDS)
    model = describe_model(spec.model)
    encoder = Encoder(spec.model, spec.input, max_model_len=model.max_model_len, vocab_size=model.vocab_size)
    samples: list[PreviewSample] = []
    rejected: list[PreviewRejected] = []
    for found in records:
        outcome = _encoded(encoder, found)
        if isinstance(outcome, Encoded):
            samples.append(_shown(encoder, found, outcome))
        else:
            rejected.append(_rejected(found, outcome))
        if len(samples) == count:
            break
    warnings = list(_warnings(spec, model, samples, rejected))
    if encoder.uses_plain_template and any(found.format != "tokenized" for found in records):
        warnings.append(
            "The tokenizer has no chat template: turns follow each other in plain lines. Give chat_template."
        )
    return Preview(samples, rejected[:SHOWN_REJECTED], warnings, encoder.template_description)


def _encoded(encoder: Encoder, found: FirstRecord) -> Encoded | RecordError | RecordProblem:
    if isinstance(found.record, RecordProblem):
        return found.record
    return encoder.encode_batch([found.record], found.format)[0]


def _shown(encoder: Encoder, found: FirstRecord, encoded: Encoded) -> PreviewSample:
    ids, mask = encoded.sample.input_ids.tolist(), encoded.sample.loss_mask.tolist()
    left_out = max(len(ids) - 2 * SHOWN_TOKENS, 0)
    shown = [slice(0, len(ids))] if not left_out else [slice(0, SHOWN_TOKENS), slice(-SHOWN_TOKENS, None)]
    texts = [token_texts(encoder.decode, ids[part]) for part in shown]
    return PreviewSample(
        id=found.sample_id,
        source=found.source,
        line=found.line,
        text=" \N{HORIZONTAL ELLIPSIS} ".join("".join(part) for part in texts),
        tokens=list(itertools.chain.from_iterable(texts)),
        token_ids=[one for part in shown for one in ids[part]],
        loss_mask=[one for part in shown for one in mask[part]],
        num_tokens=len(ids),
        num_trained=sum(mask),
        num_left_out=left_out,
        truncated=encoded.truncated,
    )


def _rejected(found: FirstRecord, problem: RecordError | RecordProblem) -> PreviewRejected:
    reason = problem.reason if isinstance(problem, RecordProblem) else problem.reason_code
    record = "" if isinstance(found.record, RecordProblem) else encode_value(found.record)[:EXCERPT_CHARS]
    place: dict[str, Any] = {"id": found.sample_id, "source": found.source, "line": found.line}
    return PreviewRejected(**place, reason=reason, detail=problem.detail, hint=HINTS.get(reason, ""), record=record)


def _warnings(
    spec: JobSpec, model: ModelInfo, samples: list[PreviewSample], rejected: list[PreviewRejected]
) -> Iterator[str]:
    num_tried, limit = len(samples) + len(rejected), spec.limits.max_rejected_ratio
    if not samples:
        yield f"None of the first {num_tried} records can be used."
    elif len(rejected) > limit * num_tried:
        yield f"{len(rejected)} of the first {num_tried} records are rejected; a job fails over {limit:.0%}."
    if any(sample.truncated for sample in samples):
        yield f"Samples over {model.max_model_len} tokens are cut to that length."
    if any(sample.num_left_out for sample in samples):
        yield f"Of samples over {2 * SHOWN_TOKENS} tokens the middle is not shown here."
