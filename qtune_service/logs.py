"""Send the output of libraries to a log file, so that only this package writes to the terminal.

Python warnings and loggers of libraries are captured. File descriptor 2, to which the C++ code of Ray and torch writes,
and sys.stdout, to which Ray prints messages about lost nodes, point to the log while a job runs. The package's own
console keeps the real standard error.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import stamina.instrumentation
from rich.console import Console


@contextlib.contextmanager
def quiet_libraries(log: Path) -> Iterator[Console]:
    """Send all output of libraries to `log`, and yield a console on the real standard error."""
    log.parent.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    sys.stderr.flush()
    real = os.dup(2)
    stamina.instrumentation.set_on_retry_hooks([stamina.instrumentation.LoggingOnRetryHook])
    handler = logging.FileHandler(log, encoding="utf-8")
    root = logging.getLogger()
    previous_stderr = sys.stderr
    with (
        log.open("a", encoding="utf-8", buffering=1) as file,
        open(real, "w", encoding="utf-8", closefd=False) as terminal,
        contextlib.redirect_stdout(file),
    ):
        os.dup2(file.fileno(), 2)
        root.addHandler(handler)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield Console(file=terminal)
        finally:
            root.removeHandler(handler)
            handler.close()
            sys.stderr = previous_stderr
            os.dup2(real, 2)
            os.close(real)
