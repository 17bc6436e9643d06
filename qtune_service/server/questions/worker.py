"""The program of a child that answers questions: `python -m qtune_service.server.questions.worker`, with limits."""

from __future__ import annotations

import traceback
from typing import Any

import pyarrow as pa

from qtune_service.errors import QTuneError, QueryError
from qtune_service.server.isolation.serving import serve
from qtune_service.server.questions import protocol
from qtune_service.server.questions.operations import OPERATIONS

CPU_S = 60
"""Processor time of one question, of all threads together."""
THREADS = 2
MAX_TRACE_CHARS = 4000
NO_STACK = "can't start new thread"
"""What Python says where there is no memory for the stack of a thread."""


def answer(request: bytes) -> bytes:
    """Answer one request: `result`, or `error` with its code, or `failure` where something unexpected happened."""
    try:
        asked = protocol.decode(request)
        return protocol.encode({"result": OPERATIONS[asked["operation"]](**asked["arguments"])})
    except QTuneError as error:
        return _error(error)
    except MemoryError:
        return _error(_no_memory())
    except RecursionError:
        return _error(QueryError("the question is nested too deeply", "Write it more simply."))
    except Exception as error:  # noqa: BLE001 - the server answers 500 and logs it, as it does for its own
        if NO_STACK in str(error):
            return _error(_no_memory())
        return protocol.encode({"failure": traceback.format_exc()[-MAX_TRACE_CHARS:]})


def _no_memory() -> QueryError:
    return QueryError("the question needs more memory than a question may take", "Ask for less.")


def _error(error: QTuneError) -> bytes:
    body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint}
    return protocol.encode({"error": body})


def main() -> None:
    """Serve until the server ends."""
    import duckdb  # noqa: F401 - loaded before the first question comes
    import tokenizers  # noqa: F401

    pa.set_cpu_count(THREADS)
    pa.set_io_thread_count(8)
    serve(answer, cpu_s=CPU_S)


if __name__ == "__main__":
    main()
