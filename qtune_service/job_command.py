"""Build the command of a job: `qtune prune` or `score` with the flags of all fields that are not defaults.

A job that sets a field without a flag, or a value that no flag can carry, becomes a job file and `qtune run`.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from qtune_service.config import JobSpec
from qtune_service.job_fields import JobField, job_fields

END = "END_OF_JOB"


def job_command(spec: JobSpec) -> str:
    """Return one command, or the lines that write a job file and run it."""
    changed = list(_changed(spec))
    if spec.from_scores is not None:  # input, model and engine are those of the scores
        changed = [(field, value) for field, value in changed if field.path.startswith("prune.")]
        words = ["--from-scores", spec.from_scores, "--output", spec.output.path]
        return shlex.join(["qtune", "prune", *words, *_flags(changed)])
    if not all(_has_flag(field, value) for field, value in changed):
        return f"cat > job.json <<'{END}'\n{_job_file(spec)}\n{END}\nqtune run job.json"
    flags = _flags((field, value) for field, value in changed if not field.is_argument)
    return shlex.join(["qtune", "score" if spec.prune is None else "prune", *flags, "--", *spec.input.paths])


def _changed(spec: JobSpec) -> Iterator[tuple[JobField, Any]]:
    """Yield each field that is not the default, with its value."""
    for field in job_fields().values():
        part, _, name = field.path.rpartition(".")
        owner = getattr(spec, part) if part else spec
        if owner is not None and (value := getattr(owner, name)) != field.default:
            yield field, value


def _has_flag(field: JobField, value: Any) -> bool:
    """Return whether a flag can carry a value: a category without a name is none for `--take`."""
    return field.flag is not None and not (field.is_mapping and "" in value)


def _flags(changed: Iterator[tuple[JobField, Any]] | list[tuple[JobField, Any]]) -> list[str]:
    return [word for field, value in changed for word in _flag(field, value)]


def _flag(field: JobField, value: Any) -> list[str]:
    assert field.option is not None
    if field.is_switch:
        return [field.option if value else field.negative or ""]
    if field.is_mapping:
        texts = [f"{name}={number}" for name, number in value.items()]
    elif isinstance(value, tuple):
        texts = ["-".join(map(str, sorted(set(value))))]
    else:
        texts = [str(value)]
    return [
        word for text in texts for word in ([f"{field.option}={text}"] if text[:1] == "-" else [field.option, text])
    ]


def _job_file(spec: JobSpec) -> str:
    """Return the spec as JSON on one line, so that none of its lines ends the text."""
    body: Mapping[str, Any] = spec.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(body)
