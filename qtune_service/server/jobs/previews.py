"""Run `qtune preview` in a child process with limits on memory, processor time and output.

The child keeps tokenizer libraries and users' chat templates out of the server. The isolation package sets the limits.
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtune_service.errors import (
    DataError,
    EngineError,
    ModelError,
    NotAllowedError,
    QTuneError,
    SpecError,
    StorageError,
    TooSlowError,
)
from qtune_service.server.isolation.limits import SMALL_LIBRARIES, ProcessLimits
from qtune_service.server.isolation.processes import (
    Finished,
    OutputTooLargeError,
    TimeOverError,
    child_environment,
    run_limited,
)

LIMIT_S = 60.0
MEMORY_BYTES = 3 << 29
MAX_OUTPUT_BYTES = 32 << 20
MAX_FILE_BYTES = 4 << 30
"""Largest file that the child may write, such as a tokenizer from a hub."""
THREADS = 2
OUT_OF_MEMORY = ("memory allocation of", "std::bad_alloc")
"""Last messages of Rust and C++ when they abort because memory has run out."""
COMMAND = (sys.executable, "-m", "qtune_service.cli")
REPORTED: tuple[type[QTuneError], ...] = (DataError, ModelError, SpecError, StorageError, NotAllowedError)
"""Errors of the child that are passed on to the caller. Others become EngineError."""


@dataclass(frozen=True, slots=True)
class PreviewLimits:
    """Limits of the child, and its environment."""

    seconds: float = LIMIT_S
    """Wall time. The limit of processor time is THREADS times as much."""
    memory_bytes: int = MEMORY_BYTES
    environment: Sequence[str] = ()
    """Names of variables that the child gets in addition to the lists in isolation/processes.py."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables with their values, the same as a driver gets."""


def run_preview(
    spec: Mapping[str, Any], count: int, limits: PreviewLimits, *, command: Sequence[str] = COMMAND
) -> dict[str, Any]:
    """Return the JSON that `qtune preview` prints for a spec.

    Raise the errors in REPORTED, TooSlowError after a time limit, ModelError where the output is too large, DataError
    where memory ran out, and EngineError for other failures.
    """
    cpu_s = math.ceil(THREADS * limits.seconds)
    own = ProcessLimits(limits.memory_bytes, cpu_s=cpu_s, file_bytes=MAX_FILE_BYTES, parent=os.getpid())
    try:
        done = run_limited(
            own.command([*command, "preview", "/dev/stdin", "--json", "--limit", str(count)]),
            stdin=json.dumps(dict(spec)).encode(),
            environment={
                **child_environment("preview", limits.environment),
                **SMALL_LIBRARIES,
                **limits.variables,
                "COLUMNS": "120",
            },
            within_s=limits.seconds,
            max_output_bytes=MAX_OUTPUT_BYTES,
        )
    except TimeOverError:
        raise _too_slow(limits) from None
    except OutputTooLargeError:
        raise ModelError(
            f"the preview has more than {MAX_OUTPUT_BYTES >> 20} MiB",
            "Check whether the chat template repeats its output.",
        ) from None
    if done.returncode == -signal.SIGXCPU:
        raise _too_slow(limits)
    return _result(done, limits)


def _too_slow(limits: PreviewLimits) -> TooSlowError:
    return TooSlowError(
        f"the preview took more than {limits.seconds:.0f} s",
        "Use a local model and data that are close to the server, and check the chat template for loops.",
    )


def _result(done: Finished, limits: PreviewLimits) -> dict[str, Any]:
    """Return the JSON that the child printed. Raise the error in it."""
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except (ValueError, RecursionError):
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-500:]
        if any(message in last for message in OUT_OF_MEMORY):
            raise DataError(
                f"the preview needs more than {limits.memory_bytes >> 20} MiB",
                "Check whether the first records are very long, or the chat template repeats them.",
            ) from None
        raise EngineError(
            f"the preview ended with status {done.returncode}: {last}", "See the server's log for more."
        ) from None
    if (error := result.get("error")) is not None:
        kind = next((kind for kind in REPORTED if kind("").code == error["code"]), EngineError)
        raise kind(error["message"], error["hint"])
    return result
