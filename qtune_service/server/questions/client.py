"""The server's side of questions: typed calls to a pool of children, and errors as the package's own."""

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
"""For an answer, reading of files included; and for a child that is free."""
MAX_ANSWER_BYTES = 128 << 20
KNOWN: tuple[type[QTuneError], ...] = (
    QueryError, OutputConflictError, DamagedFileError, StorageError, DataError, BadDatasetError, SpecError,
)  # fmt: skip
"""Errors that a child may report."""
SIMPLER = "Ask for less, or write the condition more simply. Other questions go on."


class QuestionFailedError(RuntimeError):
    """A child failed in a way that is no fault of the caller."""


class Questions:
    """Answers by children: some for questions to outputs, and another one for files that arrive.

    So an upload does not wait for questions, and a child that evaluated a user's SQL looks at nobody's upload.
    """

    def __init__(self, memory_bytes: int, size: int = 2, environment: Sequence[str] = ()) -> None:
        """memory_bytes: of each child; size: children; environment: names of variables that they get too."""
        self._memory_bytes = memory_bytes
        kind = WorkerKind(
            COMMAND,
            ProcessLimits(memory_bytes),
            {**child_environment("question", environment), **SMALL_LIBRARIES},
            MAX_ANSWER_BYTES,
        )
        self._outputs, self._arrivals = WorkerPool(kind, size), WorkerPool(kind, 1)

    def samples(self, root: str, version: str, selection: Selection) -> dict[str, Any]:
        """Return `total` and `samples` of an output. Raises QueryError."""
        return self._ask("samples", root=root, version=version, selection=asdict(selection))  # type: ignore[no-any-return]

    def sample(self, root: str, version: str, sample_id: str) -> dict[str, Any]:
        """Return one sample. Raises QueryError."""
        return self._ask("sample", root=root, version=version, sample_id=sample_id)  # type: ignore[no-any-return]

    def rejected(self, root: str, version: str, *, reason: str | None, limit: int, offset: int) -> dict[str, Any]:
        """Return `total` and `records` of an output's rejected records. Raises QueryError."""
        return self._ask("rejected", root=root, version=version, reason=reason, limit=limit, offset=offset)  # type: ignore[no-any-return]

    def compare(self, roots: tuple[str, str], versions: tuple[str, str], examples: int) -> dict[str, Any] | None:
        """Return what two outputs have in common; None where that is nothing. Raises DataError and others."""
        return self._ask("compare", roots=roots, versions=versions, examples=examples)  # type: ignore[no-any-return]

    def parquet_rows(self, name: str, path: Path) -> int:
        """Return the rows of an uploaded Parquet file. Raises BadDatasetError."""
        try:
            return self._ask_pool(self._arrivals, "parquet_rows", name=name, path=str(path))  # type: ignore[no-any-return]
        except QueryError as error:
            raise BadDatasetError(
                f"{name} has a Parquet footer that cannot be read: {error.message}",
                "Write it with fewer columns or larger row groups.",
            ) from error

    def close(self) -> None:
        """End the children."""
        self._outputs.close()
        self._arrivals.close()

    @property
    def pids(self) -> list[int]:
        """Process ids of the children that wait."""
        return [*self._outputs.pids(), *self._arrivals.pids()]

    def _ask(self, operation: str, **arguments: Any) -> Any:
        return self._ask_pool(self._outputs, operation, **arguments)

    def _ask_pool(self, pool: WorkerPool, operation: str, **arguments: Any) -> Any:
        request = protocol.encode({"operation": operation, "arguments": arguments})
        try:
            body = pool.ask(request, within_s=WITHIN_S, wait_s=WAIT_S)
        except WorkersBusyError:
            raise BusyError("all processes that answer questions are busy", "Try again in a minute.") from None
        except WorkerLateError:
            raise QueryError(f"the question took more than {WITHIN_S:.0f} s", SIMPLER) from None
        except AnswerTooLargeError:
            mebibytes = MAX_ANSWER_BYTES >> 20
            raise QueryError(f"the answer has more than {mebibytes} MiB", "Ask for fewer samples at a time.") from None
        except WorkerDiedError as death:
            raise self._explained(death) from None
        return _result(body)

    def _explained(self, death: WorkerDiedError) -> QueryError:
        if death.signal_name == "SIGXCPU":
            return QueryError("the question took more processor time than a question may take", SIMPLER)
        how = death.signal_name or f"status {death.returncode}"
        return QueryError(
            f"the question ended its process ({how}): it is nested too deeply, or needs more than "
            f"{self._memory_bytes >> 20} MiB",
            SIMPLER,
        )


def _result(body: bytes) -> Any:
    """Read an answer. Raises the error that it holds."""
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
        raise QuestionFailedError(f"a child process answered what no child should: {bytes(body[:200])!r}") from broken
    raise found
