"""The connection to a Ray cluster: join or start it, watch its head node, and leave it."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable

from qtune_service.errors import EngineError
from qtune_service.pipeline.pool_size import Cluster

CONNECT_TIMEOUT_S = 10
HEAD_POLL_S, HEAD_LOST_S = 5.0, 60.0
_lost, _left = threading.Event(), threading.Event()
"""Events of the current cluster: its head node is gone, and this process has left it."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def connect(address: str | None) -> Cluster:
    """Join the cluster at `address` or RAY_ADDRESS, or start one on this machine that ends with this process."""
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    # Ray ends a process that waits this long for an answer of the head, without a message. `watch_head` comes first.
    os.environ.setdefault("RAY_gcs_rpc_server_reconnect_timeout_s", str(round(2 * HEAD_LOST_S)))
    global _lost, _left
    _lost, _left = threading.Event(), threading.Event()
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None:
        _check_reachable(address)
    import ray

    # Ray Data divides CPUs among stages. With this many, all of `max_tasks` run beside an engine and are the limit.
    local = {} if address else {"num_cpus": 2 * (os.cpu_count() or 1) + 1, "include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.ERROR,
            log_to_driver=False,
            ignore_reinit_error=True,
            **local,
        )
    except Exception as error:  # an edge: Ray raises bare Exceptions here
        where = address or f"this machine (temporary files under {tempfile.gettempdir()})"
        raise EngineError(
            f"cannot start or join Ray at {where}: {first_line(error)}",
            "Check --ray-address / RAY_ADDRESS, that the cluster runs the same Ray and Python versions, and its token.",
        ) from error
    nodes = tuple(node["Resources"] for node in ray.nodes() if node["Alive"])
    return Cluster(ray.cluster_resources(), is_local=address is None, nodes=nodes)


def _check_reachable(address: str) -> None:
    """Try the address first: Ray itself waits for minutes where nobody answers."""
    host, _, port = address.rpartition(":")
    if "://" in address or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            "Check --ray-address / RAY_ADDRESS: it is HOST:PORT of the head, as `ray start --head` prints it.",
        ) from error


def watch_head(lost: Callable[[EngineError], None]) -> None:
    """Watch the head node in a thread and call `lost` once it has not answered for HEAD_LOST_S. Ray waits forever."""
    import ray

    address = ray.get_runtime_context().gcs_address
    host, _, port = address.rpartition(":")
    left, is_gone = _left, _lost  # of this connection, even if the process joins another one later

    def watch() -> None:
        answered_s = time.monotonic()
        while time.monotonic() - answered_s < HEAD_LOST_S:
            if left.wait(HEAD_POLL_S):
                return
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S):
                answered_s = time.monotonic()
        is_gone.set()
        lost(
            EngineError(
                f"the head node of the Ray cluster at {address} has not answered for {HEAD_LOST_S:.0f} s",
                "Finished shards are safe: run the same command again to continue, on this cluster or another one.",
            )
        )

    threading.Thread(target=watch, daemon=True, name="head").start()


def is_lost() -> bool:
    """Return whether the head node is gone. Leaving Ray in an orderly way would then hang."""
    return _lost.is_set()


def leave() -> None:
    """Leave the cluster, which ends it if this process started it. Do nothing where none was joined."""
    if "ray" not in sys.modules:
        return
    import ray

    _left.set()
    if not is_lost():
        ray.shutdown()


def first_line(error: BaseException) -> str:
    """Return an error as one line. Of a worker's error this is its cause, which Ray prints last."""
    lines = [line.strip() for line in _COLOURS.sub("", str(error)).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1] if "RayTaskError" in type(error).__name__ else lines[0]
