"""One command to its end, with bounded time, output and memory."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest

from qtune_service.server.isolation.limits import ProcessLimits
from qtune_service.server.isolation.processes import Finished, OutputTooLargeError, TimeOverError, run_limited

MIB = 1 << 20


def run(code: str, limits: ProcessLimits | None = None, within_s: float = 30, stdin: bytes = b"") -> Finished:
    """Run Python code, with or without limits."""
    command = [sys.executable, "-c", code]
    return run_limited(
        command if limits is None else limits.command(command),
        stdin=stdin,
        environment=os.environ,
        within_s=within_s,
        max_output_bytes=MIB,
    )


def test_input_and_output_go_through() -> None:
    """Also where both are longer than a pipe holds."""
    done = run("import sys; sys.stdout.write(sys.stdin.read()); sys.exit(3)", stdin=b"x" * 900_000)
    assert (done.returncode, done.stdout) == (3, b"x" * 900_000)


def test_a_command_that_reads_nothing_does_not_hang() -> None:
    """Its input is dropped."""
    assert run("print('done')", stdin=b"x" * 900_000).stdout == b"done\n"


def test_too_much_output_ends_it() -> None:
    """At once, however much it would print."""
    with pytest.raises(OutputTooLargeError):
        run("while True: print('x' * 10000)")


def test_of_errors_the_end_is_kept() -> None:
    """That is where the reason is."""
    done = run("import sys; sys.stderr.write('x' * 1000000 + 'reason')")
    assert len(done.stderr) < MIB
    assert done.stderr.endswith(b"reason")


def test_a_late_command_is_killed_with_its_children() -> None:
    """None of the session is left."""
    code = "import subprocess, time; subprocess.Popen(['sleep', '61.25']); time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(TimeOverError):
        run(code, within_s=1)
    assert time.monotonic() - started < 10
    left = [p.info for p in psutil.process_iter(["cmdline", "status"]) if p.info["cmdline"] == ["sleep", "61.25"]]
    assert [info for info in left if info["status"] != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("x = 'a' * (400 << 20)", b"MemoryError"),
        (
            "import tempfile; f = tempfile.TemporaryFile(buffering=0); f.write(b'x' * (2 << 20)); f.write(b'x')",
            b"too large",
        ),
        ("files = [open('/dev/null') for _ in range(600)]", b"Too many open files"),
    ],
)
def test_limits_hold(code: str, said: bytes) -> None:
    """Of memory, of the size of files, and of their number."""
    done = run(code, ProcessLimits(300 * MIB))
    assert done.returncode == 1
    assert said in done.stderr


def test_processor_time_ends_it() -> None:
    """By a signal that says so."""
    assert run("while True: pass", ProcessLimits(300 * MIB, cpu_s=1)).returncode == -signal.SIGXCPU


def test_a_child_whose_parent_has_ended_does_not_begin() -> None:
    """It would run on without anybody who waits for it."""
    done = run("print('begun')", ProcessLimits(300 * MIB, parent=1))
    assert (done.returncode, done.stdout) == (1, b"")
    assert run("print('begun')", ProcessLimits(300 * MIB, parent=os.getpid())).stdout == b"begun\n"
