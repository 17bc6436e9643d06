"""Wake who waits for an engine process that has died.

Where vLLM's engine has a process of its own and that is killed, vLLM's client notes it and fails every later call, but
a call that waits for an answer just then would wait without end.
"""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import InvalidStateError
from typing import Any

ASKED_S = 1.0


def wake_when_dead(client: Any) -> None:
    """Watch the engine process of a vLLM client; nothing for an engine in this process."""
    if not hasattr(client, "outputs_queue"):
        return
    # Not the client itself: the thread must not keep it alive.
    watched = client.resources, client.outputs_queue, client.utility_results
    threading.Thread(target=_watch, args=watched, daemon=True, name="dead-engine").start()


def _watch(resources: Any, outputs: Any, answers: dict[int, Any]) -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    while not resources.engine_dead:
        time.sleep(ASKED_S)
    outputs.put_nowait(EngineDeadError())
    for answer in list(answers.values()):
        with contextlib.suppress(InvalidStateError):
            answer.set_exception(EngineDeadError())
