"""What a child answers: one function for each operation, named in OPERATIONS.

Arguments and results are JSON. An output is opened once for each version of its manifest.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from qtune_service.ingest.upload_checks import rows_of_parquet
from qtune_service.output.query import Limits, Records, Selection, find, find_sample, read_rows, rejected_of, samples_of
from qtune_service.output.query.fields import quoted
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.token_view import plain, shown_samples
from qtune_service.server.questions.compared import compare_outputs

LIMITS = Limits(seconds=20.0)
"""What the evaluation of a question may take."""


@lru_cache(maxsize=32)
def _opened(root: str, version: str) -> tuple[FinishedOutput, Records]:  # noqa: ARG001 - another version is another entry
    finished = FinishedOutput(root, may_be_link=False)
    return finished, samples_of(finished)


def samples(*, root: str, version: str, selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the samples that match, with their tokens, and the number of all that match."""
    finished, records = _opened(root, version)
    found = find(records, Selection(**selection), LIMITS)
    shown = shown_samples(finished, records, found.index)
    return {"total": found.num_matching, "samples": [sample.to_json() for sample in shown]}


def sample(*, root: str, version: str, sample_id: str) -> dict[str, Any]:
    """Return one sample with its tokens."""
    finished, records = _opened(root, version)
    index = find_sample(records, sample_id, LIMITS)
    (shown,) = shown_samples(finished, records, np.array([index]))
    return shown.to_json()


def rejected(*, root: str, version: str, reason: str | None, limit: int, offset: int) -> dict[str, Any]:
    """Return rejected records, all or those of one reason, and the number of all that match."""
    records = rejected_of(_opened(root, version)[0])
    where = None if reason is None else f"reason = {quoted(reason)}"
    found = find(records, Selection(where=where, limit=limit, offset=offset), LIMITS)
    names = [name for name in records.fields if name != "index"]
    return {"total": found.num_matching, "records": [plain(row) for row in read_rows(records, found.index, names)]}


def compare(*, roots: tuple[str, str], versions: tuple[str, str], examples: int) -> dict[str, Any] | None:
    """Return what became of the samples that two outputs have in common; None where they have none."""
    (a, _), (b, _) = (_opened(root, version) for root, version in zip(roots, versions, strict=True))
    return compare_outputs(a, b, examples)


def parquet_rows(*, name: str, path: str) -> int:
    """Return the number of rows of an uploaded Parquet file. name: for messages."""
    return rows_of_parquet(name, Path(path))


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "samples": samples,
    "sample": sample,
    "rejected": rejected,
    "compare": compare,
    "parquet_rows": parquet_rows,
}
"""All that a child can be asked."""
