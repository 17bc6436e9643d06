"""Previews by a child process: a tokenizer's libraries stay out of the server, and what goes wrong there as well."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from qtune_service.errors import (
    DataError,
    EngineError,
    ModelError,
    QTuneError,
    SpecError,
    StorageError,
    TooSlowError,
)

LIMIT_S = 60.0
COMMAND = (sys.executable, "-m", "qtune_service.cli")
TOLD: tuple[type[QTuneError], ...] = (DataError, ModelError, SpecError, StorageError)
"""Errors that the child may meet; others are none of the caller's making."""


def run_preview(
    spec: Mapping[str, Any], count: int, *, command: Sequence[str] = COMMAND, limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """What `qtune preview` says of a spec. Raises what it met with, TooSlowError, and EngineError where it broke."""
    try:
        done = subprocess.run(
            [*command, "preview", "/dev/stdin", "--json", "--limit", str(count)],
            input=json.dumps(dict(spec)).encode(),
            capture_output=True,
            timeout=limit_s,
            env={**os.environ, "COLUMNS": "120"},
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise TooSlowError(
            f"the preview took more than {limit_s:.0f} s", "Is the model local, and the storage of the data near?"
        ) from None
    try:
        told: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2][-500:]
        raise EngineError(
            f"the preview ended with status {done.returncode}: {last}", "The server's log may say more."
        ) from None
    if (error := told.get("error")) is not None:
        kind = next((kind for kind in TOLD if kind("").code == error["code"]), EngineError)
        raise kind(error["message"], error["hint"])
    return told
