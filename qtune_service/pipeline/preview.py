"""Show the first samples of a job as the model will see them, before the job runs.

The code that encodes a job's shards encodes these, so text, tokens and mask are those of the job. At most MAX_RECORDS
records are read, and no weights. A sample with more than 2 x SHOWN_TOKENS tokens is shown with that many from its
beginning and from its end.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from qtune_service.config import FormatName, JobSpec
from qtune_service.ingest.discovery import notices
from qtune_service.ingest.formats import uses
from qtune_service.ingest.hub_dataset import pinned
from qtune_service.ingest.jsonl import RecordProblem, encode_value
from qtune_service.ingest.reader import FirstRecord, first_records
from qtune_service.ingest.records import HINTS, ColumnNames, RecordError
from qtune_service.report.token_view import token_texts
from qtune_service.scoring.model_config import ModelInfo, describe_model
from qtune_service.tokenize.encoded_batch import NO_ENDINGS, Encoded
from qtune_service.tokenize.encoder import Encoder

MAX_RECORDS = 200
SHOWN_TOKENS = 1000
SHOWN_REJECTED = 20
SHOWN_SIMILAR = 3
"""Rejected records that are listed of each file and reason."""
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
    num_more: int = 0
    """Records of its file with the same reason that are not listed. 0 but for the last one listed."""


@dataclass(frozen=True, slots=True)
class PreviewSource:
    """A file of which records are shown, its format, and the use of each column."""

    source: str
    format: str
    columns: dict[str, str]


@dataclass(frozen=True, slots=True)
class Preview:
    """The first samples and rejected records of a job."""

    sources: list[PreviewSource]
    samples: list[PreviewSample]
    rejected: list[PreviewRejected]
    warnings: list[str]
    template: str
    """The chat template that renders, and its limits."""


def preview(spec: JobSpec, count: int) -> Preview:
    """Return the first `count` samples of a job. Raise DataError and ModelError."""
    spec = spec.model_copy(update={"input": pinned(spec.input)})
    records = first_records(spec.input, MAX_RECORDS)
    model = describe_model(spec.model)
    encoder = Encoder(spec.model, spec.input, max_model_len=model.max_model_len, vocab_size=model.vocab_size)
    samples: list[PreviewSample] = []
    rejected: list[PreviewRejected] = []
    notes: Counter[str] = Counter()
    endings = NO_ENDINGS
    for found in records:
        outcome: Encoded | RecordError | RecordProblem
        if isinstance(found.record, RecordProblem):
            outcome = found.record
        else:
            batch = encoder.encode_columns([found.record], found.format)
            outcome = batch.outcomes()[0]
            notes.update(batch.notes)
            endings += batch.endings
        if isinstance(outcome, Encoded):
            samples.append(_shown(encoder, found, outcome))
        else:
            rejected.append(_rejected(found, outcome))
        if len(samples) == count:
            break
    warnings = [*notices(spec.input.paths, spec.input.split), *_warnings(spec, model, samples, rejected)]
    num_tried = len(samples) + len(rejected)
    warnings += [f"{number} of the first {num_tried} records: {note}." for note, number in notes.items()]
    warnings += filter(None, [encoder.stop_warning(endings)])
    if encoder.uses_plain_template and any(found.format != "tokenized" for found in records):
        warnings.append(
            "The tokenizer has no chat template: turns follow each other in plain lines. Give `chat_template`."
        )
    sources = _sources(records[:num_tried], ColumnNames.of(spec.input))
    return Preview(sources, samples, _listed(rejected), warnings, encoder.template_description)


def _listed(rejected: Sequence[PreviewRejected]) -> list[PreviewRejected]:
    """Return the rejected records to list: of each file and reason the first ones, with the number of the others."""
    groups: dict[tuple[str, str], list[PreviewRejected]] = {}
    for record in rejected:
        groups.setdefault((record.source, record.reason), []).append(record)
    listed = []
    for group in groups.values():
        shown = group[:SHOWN_SIMILAR]
        listed += [*shown[:-1], replace(shown[-1], num_more=len(group) - len(shown))]
    return sorted(listed, key=lambda record: record.id)[:SHOWN_REJECTED]


def _sources(records: Sequence[FirstRecord], names: ColumnNames) -> list[PreviewSource]:
    """Return the files of the records, with the columns that these have."""
    columns: dict[tuple[str, FormatName], dict[str, None]] = {}
    for found in records:
        if not isinstance(found.record, RecordProblem):
            columns.setdefault((found.source, found.format), {}).update(dict.fromkeys(found.record))
    return [
        PreviewSource(source, name, {column: use.value for column, use in uses(name, of_file, names).items()})
        for (source, name), of_file in columns.items()
    ]


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
