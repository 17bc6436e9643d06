"""SIGTERM, with and without something in hand."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from qtune_service.errors import EngineError
from qtune_service.pipeline.shutdown import EXIT_CODE, Stop

CHILD = """
import sys, time
from qtune_service.errors import EngineError
from qtune_service.pipeline.shutdown import Stop
stop, arrived = Stop(), set()
stop.install()
def ask():
    return {1, 2}
with stop.saving(ask, arrived, grace_s=float(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(1)
    arrived |= {1, 2}
    time.sleep(20)
"""


def stopped(grace_s: float, *, again_after_s: float | None = None) -> tuple[int, float]:
    """Send SIGTERM to a process that has work in hand for a second: its exit code, and how long it took."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, str(grace_s)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    began_s = time.monotonic()
    process.send_signal(signal.SIGTERM)
    if again_after_s is not None:
        time.sleep(again_after_s)
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=15)
    return process.returncode, time.monotonic() - began_s


def test_what_is_in_hand_arrives_first() -> None:
    """The process ends once all in hand has arrived, long before its grace is over."""
    code, seconds = stopped(10)
    assert code == EXIT_CODE
    assert 0.8 < seconds < 5


def test_grace_is_bounded() -> None:
    """What does not arrive in time is left."""
    code, seconds = stopped(0.2)
    assert code == EXIT_CODE
    assert seconds < 0.9


def test_a_second_signal_ends_at_once() -> None:
    """Who asks twice does not want to wait."""
    code, seconds = stopped(10, again_after_s=0.1)
    assert code == EXIT_CODE
    assert seconds < 0.9


def test_nothing_in_hand_ends_at_once() -> None:
    """Outside of scoring the handler leaves by SystemExit."""
    with pytest.raises(SystemExit) as left:
        Stop().handle(signal.SIGTERM, None)
    assert left.value.code == EXIT_CODE


def test_what_ray_replaces_is_restored() -> None:
    """`ray.get` raises SystemExit(1) in place of what the handler raised: a stop, or an error of another thread."""
    stop = Stop()
    with pytest.raises(SystemExit):
        stop.handle(signal.SIGTERM, None)
    with pytest.raises(SystemExit) as left, stop.restored():
        raise SystemExit(1)
    assert left.value.code == EXIT_CODE
    stop.fail(EngineError("the head node is gone"))
    with pytest.raises(EngineError, match="head node"), stop.restored():
        raise SystemExit(1)


def test_another_exit_is_not_changed() -> None:
    """Without a signal an exit keeps its code."""
    with pytest.raises(SystemExit) as left, Stop().restored():
        raise SystemExit(3)
    assert left.value.code == 3
