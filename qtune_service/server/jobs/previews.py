"""Previews by a child process: a tokenizer's libraries stay out of the server, and so do chat templates of users.

The child has limits of memory, of processor time and of output; see isolation/.
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
"""Of what a tokenizer's hub sends, for example."""
THREADS = 2
OUT_OF_MEMORY = ("memory allocation of", "std::bad_alloc")
"""What Rust and C++ say when they abort for want of memory."""
COMMAND = (sys.executable, "-m", "qtune_service.cli")
TOLD: tuple[type[QTuneError], ...] = (DataError, ModelError, SpecError, StorageError, NotAllowedError)
"""Errors that the child may meet; others are none of the caller's making."""


@dataclass(frozen=True, slots=True)
class PreviewLimits:
    """What the child may take."""

    seconds: float = LIMIT_S
    """Of time, and THREADS times as many of processor time."""
    memory_bytes: int = MEMORY_BYTES
    environment: Sequence[str] = ()
    """Names of variables that it gets beside the usual; see server/isolation/processes.py."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Variables and their values, as a driver gets them."""


def run_preview(
    spec: Mapping[str, Any], count: int, limits: PreviewLimits, *, command: Sequence[str] = COMMAND
) -> dict[str, Any]:
    """Return what `qtune preview` says of a spec.

    Raises what the child met with, TooSlowError, ModelError where it took more memory or printed more than it may, and
    EngineError where it broke.
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
        raise _late(limits) from None
    except OutputTooLargeError:
        raise ModelError(
            f"the preview has more than {MAX_OUTPUT_BYTES >> 20} MiB",
            "Does the chat template repeat itself?",
        ) from None
    if done.returncode == -signal.SIGXCPU:
        raise _late(limits)
    return _told(done, limits)


def _late(limits: PreviewLimits) -> TooSlowError:
    return TooSlowError(
        f"the preview took more than {limits.seconds:.0f} s",
        "Is the model local, and the storage of the data near? Does the chat template loop?",
    )


def _told(done: Finished, limits: PreviewLimits) -> dict[str, Any]:
    """Read what the child printed. Raises the error that it holds."""
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except (ValueError, RecursionError):
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-500:]
        if any(words in last for words in OUT_OF_MEMORY):
            raise DataError(
                f"the preview needs more than {limits.memory_bytes >> 20} MiB",
                "Are the first records very long, or does the chat template repeat them?",
            ) from None
        raise EngineError(
            f"the preview ended with status {done.returncode}: {last}", "The server's log may say more."
        ) from None
    if (error := told.get("error")) is not None:
        kind = next((kind for kind in TOLD if kind("").code == error["code"]), EngineError)
        raise kind(error["message"], error["hint"])
    return told
