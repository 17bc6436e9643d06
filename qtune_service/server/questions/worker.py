"""Answer queries of outputs and count rows of uploads, in a child process with limits.

It runs as `python -m qtune_service.server.questions.worker`.

OPERATIONS has one function for each operation. Arguments and results are plain data for JSON. Open outputs are cached
by the version of their manifest.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.errors import QTuneError, QueryError
from qtune_service.ingest.upload_checks import rows_of_file
from qtune_service.output.pairing import Pairing, pair
from qtune_service.output.query import Limits, Records, Selection, find, find_sample, read_rows, rejected_of, samples_of
from qtune_service.output.query.fields import quoted
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.token_view import plain, shown_samples
from qtune_service.server.isolation.worker_loop import serve
from qtune_service.server.questions import protocol

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")
LIMITS = Limits(seconds=20.0)
"""Limits of the evaluation of a query."""
CPU_S = 60
"""Processor time of one query, of all threads together."""
THREADS = 2
MAX_TRACE_CHARS = 4000
NO_STACK = "can't start new thread"
"""Python's message where there is no memory for the stack of a thread."""


def compare_outputs(a: FinishedOutput, b: FinishedOutput, num_examples: int) -> dict[str, Any] | None:
    """Return the comparison of two outputs as plain data, or None where they have no common sample.

    It has counts of samples, moves between quadrants, and at most num_examples samples that only one output kept. Raise
    DataError where the outputs are too large, and OutputConflictError where one is only scored.
    """
    paired = pair(a, b)
    return _compared(paired, a, b, num_examples) if paired.rows.size else None


def _compared(paired: Pairing, a: FinishedOutput, b: FinishedOutput, num_examples: int) -> dict[str, Any]:
    common = paired.rows.shape[1]
    (neither, by_b), (by_a, by_both) = paired.kept_table.tolist()
    either = by_a + by_b + by_both
    only_a, only_b = paired.kept_by_one()
    return {
        "common": common,
        "only_in_a": len(paired.a.kept) - common,
        "only_in_b": len(paired.b.kept) - common,
        "kept_by_both": by_both,
        "kept_by_a": by_a,
        "kept_by_b": by_b,
        "kept_by_neither": neither,
        "overlap": by_both / either if either else None,
        "moves": {
            name: dict(zip(QUADRANTS, row, strict=True))
            for name, row in zip(QUADRANTS, paired.moves.tolist(), strict=True)
        },
        "examples_a": _examples(a, only_a, num_examples),
        "examples_b": _examples(b, only_b, num_examples),
    }


def _examples(finished: FinishedOutput, index: NDArray[np.int64], number: int) -> list[dict[str, Any]]:
    """Return some samples of an index as JSON, at equal distances."""
    number = min(number, len(index))
    picked = index[np.arange(number) * len(index) // max(number, 1)]
    return [sample.to_json() for sample in shown_samples(finished, samples_of(finished), picked)]


@lru_cache(maxsize=32)
def _opened(root: str, version: str) -> tuple[FinishedOutput, Records]:  # noqa: ARG001 - part of the cache's key
    finished = FinishedOutput(root, may_be_link=False)
    return finished, samples_of(finished)


def samples(*, root: str, version: str, selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the selected samples with their tokens, and the number of all that match."""
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
    """Return a page of rejected records, all or those of one reason, and the number of all that match."""
    records = rejected_of(_opened(root, version)[0])
    where = None if reason is None else f"reason = {quoted(reason)}"
    found = find(records, Selection(where=where, limit=limit, offset=offset), LIMITS)
    names = [name for name in records.fields if name != "index"]
    return {"total": found.num_matching, "records": [plain(row) for row in read_rows(records, found.index, names)]}


def compare(*, roots: tuple[str, str], versions: tuple[str, str], examples: int) -> dict[str, Any] | None:
    """Return the comparison of two outputs, or None where they have no common sample."""
    (a, _), (b, _) = (_opened(root, version) for root, version in zip(roots, versions, strict=True))
    return compare_outputs(a, b, examples)


def count_rows(*, name: str, path: str) -> int:
    """Return the number of rows of an uploaded Parquet or Arrow file. name: its name in messages."""
    return rows_of_file(name, Path(path))


OPERATIONS: Mapping[str, Callable[..., Any]] = {
    "samples": samples,
    "sample": sample,
    "rejected": rejected,
    "compare": compare,
    "count_rows": count_rows,
}
"""Operations of a child, by name."""


def answer(request: bytes) -> bytes:
    """Answer one request by `result`, by `error` with its code, or by `failure` with the traceback of a bug."""
    try:
        call = protocol.decode(request)
        return protocol.encode({"result": OPERATIONS[call["operation"]](**call["arguments"])})
    except QTuneError as error:
        return _error(error)
    except MemoryError:
        return _error(_no_memory())
    except RecursionError:
        return _error(QueryError("the condition is nested too deeply", "Simplify it."))
    except Exception as error:  # noqa: BLE001 - the server answers 500 and logs it, as for its own errors
        if NO_STACK in str(error):
            return _error(_no_memory())
        return protocol.encode({"failure": traceback.format_exc()[-MAX_TRACE_CHARS:]})


def _no_memory() -> QueryError:
    return QueryError("the query needs more than the allowed memory", "Request fewer samples or a simpler condition.")


def _error(error: QTuneError) -> bytes:
    body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    return protocol.encode({"error": body})


def main() -> None:
    """Answer queries until the server ends."""
    import duckdb  # noqa: F401 - loaded before the first query arrives
    import tokenizers  # noqa: F401

    pa.set_cpu_count(THREADS)
    pa.set_io_thread_count(8)
    serve(answer, cpu_s=CPU_S)


if __name__ == "__main__":
    main()
