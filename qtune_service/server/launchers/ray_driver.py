"""What a driver on a Ray cluster is given, whoever submits it: its name, command and environment."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qtune_service.errors import LaunchError, SpecError
from qtune_service.job_states import Job
from qtune_service.output.layout import JOB_VARIABLE
from qtune_service.server.launchers.stop_limit import ray_stop_wait_s
from qtune_service.spec_text import pack_spec

SPEC_VARIABLE = "QTUNE_SPEC"


def submission_id(job_id: str, attempt: int) -> str:
    """Of a driver: a cluster takes an id once."""
    return f"qtune-{job_id}-{attempt}"


def submission_ids(job: Job) -> list[str]:
    """Of all its attempts."""
    return [submission_id(job.id, attempt) for attempt in range(1, job.attempts + 1)]


def entrypoint(command: str) -> str:
    """What a shell of the cluster runs."""
    return f"exec {command} run env:{SPEC_VARIABLE}"


def environment(job: Job, *, has_gpus: bool) -> dict[str, str]:
    """The spec, and how long Ray waits after SIGTERM. has_gpus: see `_asking_for_gpus`. Raises LaunchError."""
    try:
        spec = pack_spec(_asking_for_gpus(job.spec) if has_gpus else job.spec)
    except SpecError as error:
        raise LaunchError(error.message, error.hint) from error
    wait_s = str(ray_stop_wait_s(job.spec))
    mark = f"{job.id}:{job.attempts}"
    own = {JOB_VARIABLE: mark, SPEC_VARIABLE: spec, "RAY_JOB_STOP_WAIT_TIME_S": wait_s, "COLUMNS": "120"}
    return {**job.variables, **own}


def _asking_for_gpus(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """The spec with GPUs where it leaves them open.

    A driver takes those that its cluster has, and one whose GPU nodes come when they are asked for has none at first.
    """
    engine = spec.get("engine") or {}
    if engine.get("gpus_per_actor") is not None or spec.get("from_scores") is not None:
        return spec
    return {**spec, "engine": {**engine, "gpus_per_actor": engine.get("tensor_parallel_size", 1)}}
