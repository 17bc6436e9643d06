"""Look at a Ray cluster: its nodes, what is free there, and the actors of all jobs.

Ray's public state API requires a dashboard, which a cluster need not have. So the tables of the head node are read by
the accessor that this API uses. One look takes about a millisecond on a small cluster.
"""

from __future__ import annotations

from typing import Any

from qtune_service.pipeline.cluster_state import NODE_CHARS, ClusterState, Kind, Node

LIVE_PHASES = ("ALIVE", "PENDING_CREATION", "RESTARTING", "DEPENDENCIES_UNREADY")
POOL_CLASS = "MapWorker"
"""Part of the name that Ray Data gives the class of a pool's actors."""


def look_at_cluster(cpu_nodes: str = "") -> ClusterState:
    """Return the state of the cluster that this process has joined. cpu_nodes: resource of the nodes for CPU work."""
    import ray
    from ray._private.state import state
    from ray.core.generated import gcs_pb2

    accessor = state._connect_and_get_accessor()  # noqa: SLF001 - see above
    free = state.available_resources_per_node()
    nodes = {
        node["NodeID"][:NODE_CHARS]: Node(
            node["Resources"], free.get(node["NodeID"], {}), node.get("NodeManagerHostname", "")
        )
        for node in ray.nodes()
        if node["Alive"]
    }
    own = ray.get_runtime_context().get_job_id()
    placed: set[str] = set()
    unplaced, others = 0, dict[Kind, float]()
    for phase in LIVE_PHASES:  # a cluster remembers 100,000 dead actors
        for body in accessor.get_actor_table(None, phase):
            actor = gcs_pb2.ActorTableData.FromString(body)
            needs: dict[Kind, float] = {"GPU": _needed(actor, "GPU"), "CPU": _needed(actor, "CPU")}
            if not any(needs.values()):
                continue
            has_process = actor.pid > 0 and phase != "RESTARTING"
            if actor.job_id.hex() != own:
                others = {kind: others.get(kind, 0.0) + has_process * amount for kind, amount in needs.items()}
            elif POOL_CLASS not in actor.class_name:
                continue  # a worker of an engine
            elif has_process:
                placed.add(f"{actor.address.node_id.hex()[:NODE_CHARS]}:{actor.pid}")
            else:
                unplaced += 1
    lacks = bool(cpu_nodes) and not any(node.total.get(cpu_nodes) for node in nodes.values())
    return ClusterState(nodes, frozenset(placed), unplaced, others, lacks)


def _needed(actor: Any, kind: Kind) -> float:
    """Return what an actor reserves, also by a placement group, whose resources carry its id in their names."""
    amounts = [amount for name, amount in actor.required_resources.items() if name.partition("_group_")[0] == kind]
    return float(max(amounts, default=0.0))
