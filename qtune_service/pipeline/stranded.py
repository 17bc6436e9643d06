"""Shards in the hands of actors that no longer have a place.

Ray starts an actor of a lost node again on another one, and where it fits on none it waits, without end and without a
word, and the shards that it had in hand wait with it. The other actors go on. Once they have nothing left to do, the
wait is ended: the stream is given up, and the shards left go to a new pool on the nodes that are there.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

from qtune_service.errors import EngineError
from qtune_service.pipeline.supervision import Guard, short

ASKED_S, IDLE_S = 5.0, 30.0


class StrandedError(EngineError):
    """The shards that are left wait for a node that has gone."""


@contextlib.contextmanager
def watch_stranded(
    guard: Guard, give_up: Callable[[StrandedError], None], say: Callable[[str], None]
) -> Iterator[None]:
    """Within the block, call `give_up` from a thread if what is left is stranded, and `say` it if nobody works."""
    left = threading.Event()

    def watch() -> None:
        has_told = False
        while not left.wait(ASKED_S):
            with contextlib.suppress(Exception):  # a cluster in trouble: asked again, and watch_head sees to it
                idle_s, has_lost = guard.idle(nodes_here())
                if idle_s < IDLE_S or left.is_set():
                    has_told = has_told and idle_s > 0
                    continue
                if has_lost:
                    give_up(StrandedError("a node left the cluster with shards in hand, and no other has room"))
                    left.wait(IDLE_S)
                elif not has_told:
                    say("no worker is running: waiting for a node with room for one")
                    has_told = True

    thread = threading.Thread(target=watch, daemon=True, name="stranded")
    thread.start()
    try:
        yield
    finally:
        left.set()


def nodes_here() -> set[str]:
    """The ids of the cluster's nodes that are alive."""
    import ray

    return {short(node["NodeID"]) for node in ray.nodes() if node["Alive"]}
