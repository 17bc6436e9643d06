"""The command that a page shows for a job does what the job does."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
import typer

from qtune_service.cli import app
from qtune_service.cli.flags import build_spec
from qtune_service.config import JobSpec, PruneSpec
from qtune_service.job_command import job_command

PLAIN: dict[str, Any] = {"input": {"paths": ["a.jsonl"]}, "model": {"name": "m"}, "output": {"path": "out"}}


def spec(**parts: Any) -> JobSpec:
    """Return a job. Parts are merged into a plain one."""
    return JobSpec.model_validate({name: {**PLAIN.get(name, {}), **parts.get(name, {})} for name in {*PLAIN, *parts}})


def parsed(command: str) -> JobSpec:
    """Parse a command into a job."""
    words = shlex.split(command)
    found = typer.main.get_command(app).commands[words[1]].make_context(words[1], words[2:]).params  # type: ignore[attr-defined]
    method = {name: found[name] for name in PruneSpec.model_fields} if words[1] == "prune" else None
    return build_spec(found, method)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "input": {
                "paths": ["it's $HOME/*.jsonl", "-b.jsonl"],
                "take": {"a b=c": 3, "d": 0},
                "category_field": "c",
                "limit": 7,
            }
        },
        {"input": {"prompt_column": "q", "completion_column": "-a", "category_field": "--x", "overlong": "truncate"}},
        {"model": {"name": "-m", "dtype": "float32", "max_model_len": 9, "trust_remote_code": True, "revision": "r"}},
        {"engine": {"name": "vllm", "num_actors": "2-5", "enable_prefix_caching": False, "gpus_per_actor": 0.5}},
        {"engine": {"num_actors": 3}, "limits": {"max_rejected_ratio": 0.25, "max_failed_shards": 2}},
        {"prune": {"sample_keep_ratio": 0.125, "strategy": "longest", "strategy_order": "lowest", "seed": 5}},
    ],
)
def test_flags_give_the_same_job(changes: dict[str, Any]) -> None:
    """Parsed again, whatever the values look like."""
    wanted = spec(**changes)
    assert parsed(job_command(wanted)) == wanted


def test_scoring_has_a_command_of_its_own() -> None:
    """`qtune score`."""
    wanted = JobSpec.model_validate({**PLAIN, "prune": None})
    assert job_command(wanted).startswith("qtune score ")
    assert parsed(job_command(wanted)) == wanted


def test_a_field_without_a_flag_comes_in_a_file() -> None:
    """The text between the markers is the job."""
    wanted = spec(engine={"logits_bytes": 1 << 21}, input={"paths": ["END_OF_JOB\nEND_OF_JOB"]})
    first, text, end, last = job_command(wanted).splitlines()
    assert (first, end, last) == ("cat > job.json <<'END_OF_JOB'", "END_OF_JOB", "qtune run job.json")
    assert JobSpec.model_validate(json.loads(text)) == wanted


def test_pruning_again_names_the_scores_and_the_method() -> None:
    """And no data or model, which come with the scores."""
    again = JobSpec.model_validate({**PLAIN, "from_scores": "old dir", "prune": {"sample_keep_ratio": 0.25}})
    command = job_command(again)
    assert command == "qtune prune --from-scores 'old dir' --output out --sample-keep-ratio 0.25"


def test_every_field_has_a_flag_or_is_known_to_have_none() -> None:
    """A field that is added later is not forgotten."""
    flags = {option for parameter in typer.main.get_command(app).commands["prune"].params for option in parameter.opts}  # type: ignore[attr-defined]
    from qtune_service.job_command import FLAGLESS, OWN_NAMES

    special = {"input.paths", "engine.enable_prefix_caching"}
    for part, value in spec():
        for name in getattr(type(value), "model_fields", ()):
            path = f"{part}.{name}"
            assert path in FLAGLESS | special or f"--{OWN_NAMES.get(path, name).replace('_', '-')}" in flags, path
