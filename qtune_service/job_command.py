"""The command that does what a job does: `qtune prune` with the flags that are not defaults.

Some fields have no flag, since they belong into a job file; where one of these is set, the command writes such a file.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from qtune_service.config import JobSpec

FLAGLESS = frozenset(
    {"engine.cpus_per_actor", "engine.logits_bytes", "engine.head_kernel", "engine.gpu_memory_utilization"}
    | {"engine.cpu_kv_cache_bytes", "limits.stop_grace_s"}
)
OWN_NAMES = {"model.name": "model", "engine.name": "engine", "output.path": "output"}
END = "END_OF_JOB"


def job_command(spec: JobSpec) -> str:
    """One command, or the three lines that write a job file and run it."""
    changed = dict(_changed(spec))
    if spec.from_scores is not None:  # input, model and engine are those of the scores
        method = [word for name, value in changed.items() if name.startswith("prune.") for word in _flag(name, value)]
        return shlex.join(["qtune", "prune", "--from-scores", spec.from_scores, "--output", spec.output.path, *method])
    if FLAGLESS & changed.keys():
        return f"cat > job.json <<'{END}'\n{_job_file(spec)}\n{END}\nqtune run job.json"
    words = [word for name, value in changed.items() if name != "input.paths" for word in _flag(name, value)]
    return shlex.join(["qtune", "score" if spec.prune is None else "prune", *words, "--", *spec.input.paths])


def _changed(spec: JobSpec) -> Iterator[tuple[str, Any]]:
    """`prune.seed` and its value, for each field that is not the default."""
    for part, value in spec:
        if not hasattr(type(value), "model_fields"):
            continue
        for name, field in type(value).model_fields.items():
            found = getattr(value, name)
            if found != field.get_default(call_default_factory=True):
                yield f"{part}.{name}", found


def _flag(name: str, value: Any) -> list[str]:
    flag = f"--{OWN_NAMES.get(name, name.partition('.')[2]).replace('_', '-')}"
    if name == "input.take":
        return [word for category, number in value.items() for word in (flag, f"{category}={number}")]
    if name == "engine.num_actors":
        low, high = value
        return [flag, str(low) if low == high else f"{low}-{high}"]
    if name == "engine.enable_prefix_caching":
        return ["--no-prefix-caching"]
    return [flag] if value is True else [f"{flag}={value}"] if str(value).startswith("-") else [flag, str(value)]


def _job_file(spec: JobSpec) -> str:
    """JSON on one line: no line of it can end the text."""
    body: Mapping[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(body)
