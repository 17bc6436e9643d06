"""While a job runs the terminal is ours alone."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path

import pytest

from qtune_service.logs import quiet_libraries


def test_only_our_lines_reach_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Prints, warnings, loggers and C++ code of libraries go to the log; both streams are as before afterwards."""
    log = tmp_path / "log"
    with quiet_libraries(log) as console:
        console.print("ours")
        sys.stdout.write("printed by a library\n")
        os.write(2, b"written by C++\n")
        logging.getLogger("a library").error("logged")
        warnings.warn("warned", stacklevel=1)
    sys.stdout.write("out again\n")
    sys.stderr.write("err again\n")
    seen = capfd.readouterr()
    assert (seen.out, seen.err) == ("out again\n", "ours\nerr again\n")
    for text in ("printed by a library", "written by C++", "logged"):
        assert text in log.read_text()
