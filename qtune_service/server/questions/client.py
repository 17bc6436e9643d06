"""Send queries of outputs to a pool of children, by typed calls that raise the package's own errors."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qtune_service.errors import (
    BadDatasetError,
    BusyError,
    DamagedFileError,
    DataError,
    OutputConflictError,
    QTuneError,
    QueryError,
    SpecError,
    StorageError,
)
from qtune_service.output.query.search import Selection
from qtune_service.server.isolation.limits import SMALL_LIBRARIES, ProcessLimits
from qtune_service.server.isolation.processes import child_environment
from qtune_service.server.isolation.worker_pool import (
    AnswerTooLargeError,
    WorkerDiedError,
    WorkerKind,
    WorkerLateError,
    WorkerPool,
    WorkersBusyError,
)
from qtune_service.server.questions import protocol

COMMAND = (sys.executable, "-m", "qtune_service.server.questions.worker")
WITHIN_S, WAIT_S = 60.0, 60.0
"""Seconds for an answer, including the time to read files, and seconds to wait for a free child."""
MAX_ANSWER_BYTES = 128 << 20
KNOWN: tuple[type[QTuneError], ...] = (
    QueryError, OutputConflictError, DamagedFileError, StorageError, DataError, BadDatasetError, SpecError,
)  # fmt: skip
"""Errors that a child may report."""
SIMPLER = "Request fewer samples or simplify the condition. Other queries are not affected."


class QuestionFailedError(RuntimeError):
    """A child failed for a reason that is not the caller's fault."""


class Questions:
    """Children that answer queries of outputs, and another one that reads uploaded files.

    So an upload does not wait for queries, and a child that has evaluated a user's SQL never reads an upload.
    """

    def __init__(self, memory_bytes: int, size: int = 2, environment: Sequence[str] = ()) -> None:
        """Create pools of `size` children for outputs and one for uploads, each child with memory_bytes.

        environment: names of variables that the children get in addition to the default ones.
        """
        self._memory_bytes = memory_bytes
        kind = WorkerKind(
            COMMAND,
            ProcessLimits(memory_bytes),
            {**child_environment("question", environment), **SMALL_LIBRARIES},
            MAX_ANSWER_BYTES,
        )
        self._outputs, self._arrivals = WorkerPool(kind, size), WorkerPool(kind, 1)

    def samples(self, root: str, version: str, selection: Selection) -> dict[str, Any]:
        """Return `total` and `samples` of an output. Raise QueryError."""
        return self._ask("samples", root=root, version=version, selection=asdict(selection))  # type: ignore[no-any-return]

    def sample(self, root: str, version: str, sample_id: str) -> dict[str, Any]:
        """Return one sample. Raise QueryError."""
        return self._ask("sample", root=root, version=version, sample_id=sample_id)  # type: ignore[no-any-return]

    def rejected(self, root: str, version: str, *, reason: str | None, limit: int, offset: int) -> dict[str, Any]:
        """Return `total` and `records` of an output's rejected records. Raise QueryError."""
        return self._ask("rejected", root=root, version=version, reason=reason, limit=limit, offset=offset)  # type: ignore[no-any-return]

    def compare(self, roots: tuple[str, str], versions: tuple[str, str], examples: int) -> dict[str, Any] | None:
        """Return the comparison of two outputs, or None where they have no common sample.

        Raise DataError, OutputConflictError and QueryError.
        """
        return self._ask("compare", roots=roots, versions=versions, examples=examples)  # type: ignore[no-any-return]

    def count_rows(self, name: str, path: Path) -> int:
        """Return the number of rows of an uploaded Parquet or Arrow file. Raise BadDatasetError."""
        try:
            return self._ask_pool(self._arrivals, "count_rows", name=name, path=str(path))  # type: ignore[no-any-return]
        except QueryError as error:
            raise BadDatasetError(
                f"{name} has metadata that cannot be read: {error.message}",
                "Write it with fewer columns, or larger row groups or batches.",
            ) from error

    def close(self) -> None:
        """End the children."""
        self._outputs.close()
        self._arrivals.close()

    @property
    def pids(self) -> list[int]:
        """Return the process ids of the idle children."""
        return [*self._outputs.pids(), *self._arrivals.pids()]

    def _ask(self, operation: str, **arguments: Any) -> Any:
        return self._ask_pool(self._outputs, operation, **arguments)

    def _ask_pool(self, pool: WorkerPool, operation: str, **arguments: Any) -> Any:
        request = protocol.encode({"operation": operation, "arguments": arguments})
        try:
            body = pool.ask(request, within_s=WITHIN_S, wait_s=WAIT_S)
        except WorkersBusyError:
            raise BusyError("all processes that answer queries are busy", "Try again in a minute.") from None
        except WorkerLateError:
            raise QueryError(f"the query took more than {WITHIN_S:.0f} s", SIMPLER) from None
        except AnswerTooLargeError:
            mebibytes = MAX_ANSWER_BYTES >> 20
            raise QueryError(f"the answer has more than {mebibytes} MiB", "Request fewer samples at a time.") from None
        except WorkerDiedError as death:
            raise self._explained(death) from None
        return _result(body)

    def _explained(self, death: WorkerDiedError) -> QueryError:
        if death.signal_name == "SIGXCPU":
            return QueryError("the query took more than the allowed processor time", SIMPLER)
        how = death.signal_name or f"status {death.returncode}"
        return QueryError(
            f"the query ended its process ({how}): it is nested too deeply, or needs more than "
            f"{self._memory_bytes >> 20} MiB",
            SIMPLER,
        )


def _result(body: bytes) -> Any:
    """Decode an answer. Raise the error in it."""
    try:
        answer: Mapping[str, Any] = protocol.decode(body)
        if "result" in answer:
            return answer["result"]
        if "failure" in answer:
            raise QuestionFailedError(f"a child process failed: {answer['failure']}")
        error = answer["error"]
        kind = next(kind for kind in KNOWN if kind("").code == error["code"])
        found = kind(str(error["message"]), str(error["hint"]))
    except (ValueError, LookupError, TypeError, StopIteration) as broken:
        raise QuestionFailedError(f"a child process gave an invalid answer: {bytes(body[:200])!r}") from broken
    raise found
