"""Job specs: what is accepted, and what a mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import JobSpec
from qtune_service.errors import SpecError
from qtune_service.spec_files import load_spec, parse_spec
from tests.jobs import REPO

MINIMAL: dict[str, Any] = {"input": {"paths": ["d.jsonl"]}, "model": {"name": "m"}, "output": {"path": "o"}}


def test_minimal_spec_has_the_methods_defaults() -> None:
    """Only input, model and output must be given."""
    spec = parse_spec(MINIMAL)
    assert spec.prune is not None
    assert (spec.prune.sample_keep_ratio, spec.prune.token_keep_ratio, spec.prune.neighbor_lambda) == (0.5, 0.7, 0.5)
    assert spec.prune.bisect_max_iter is None


@pytest.mark.parametrize(
    ("part", "value", "named"),
    [
        ("prune", {"sample_keep_ratio": 0}, "prune.sample_keep_ratio"),
        ("prune", {"neighbor_lambda": 2}, "prune.neighbor_lambda"),
        ("prune", {"sample_kep_ratio": 0.5}, "prune.sample_kep_ratio"),
        ("input", {"paths": []}, "input.paths"),
        ("input", {"paths": ["a"], "take": {"x": 1}}, "category_field"),
        ("engine", {"num_actors": "4-2"}, "num_actors"),
        ("engine", {"num_actors": "many"}, "num_actors"),
    ],
)
def test_a_wrong_field_is_named(part: str, value: dict[str, Any], named: str) -> None:
    """An error names the field, also one that does not exist."""
    with pytest.raises(SpecError) as caught:
        parse_spec({**MINIMAL, part: value})
    assert named in str(caught.value)


@pytest.mark.parametrize(("given", "pool"), [(3, (3, 3)), ("3", (3, 3)), ("1-4", (1, 4)), ([2, 5], (2, 5))])
def test_actors_are_a_number_or_a_range(given: object, pool: tuple[int, int]) -> None:
    """`num_actors` reads as people write it."""
    assert parse_spec({**MINIMAL, "engine": {"num_actors": given}}).engine.num_actors == pool


def test_fingerprint_is_about_the_result_only() -> None:
    """Another machine shape or place continues a job; another ratio or engine is another job."""
    base = parse_spec(MINIMAL)
    elsewhere = parse_spec({**MINIMAL, "output": {"path": "p"}, "engine": {"num_actors": 8, "gpus_per_actor": 1}})
    assert base.fingerprint() == elsewhere.fingerprint()
    assert base.fingerprint() != parse_spec({**MINIMAL, "prune": {"sample_keep_ratio": 0.4}}).fingerprint()
    assert base.fingerprint() != parse_spec({**MINIMAL, "engine": {"name": "reference"}}).fingerprint()


def test_speed_does_not_define_a_job() -> None:
    """The remedies for running out of memory continue a job, and so does a version with more fields."""
    base = parse_spec(MINIMAL)
    smaller: dict[str, object] = {"logits_bytes": 1 << 20, "max_num_batched_tokens": 512, "tensor_parallel_size": 2}
    smaller |= {"head_kernel": False, "enable_prefix_caching": False, "gpu_memory_utilization": 0.5}
    assert parse_spec({**MINIMAL, "engine": smaller}).defining() == base.defining()
    assert parse_spec({**MINIMAL, "engine": {**smaller, "name": "reference"}}).defining() != base.defining()
    explicit = parse_spec(base.model_dump(mode="json"))  # with all defaults written out
    assert explicit.fingerprint() == base.fingerprint()
    assert set(base.defining()) == {"input", "model", "scores_version"}


def test_json_round_trip_and_files(tmp_path: Path) -> None:
    """A spec survives JSON, and TOML and JSON files say the same."""
    spec = parse_spec(MINIMAL)
    assert JobSpec.model_validate_json(spec.model_dump_json()) == spec
    (tmp_path / "j.json").write_text(json.dumps(MINIMAL))
    (tmp_path / "j.toml").write_text('[input]\npaths = ["d.jsonl"]\n[model]\nname = "m"\n[output]\npath = "o"\n')
    assert load_spec(tmp_path / "j.json") == load_spec(tmp_path / "j.toml") == spec


@pytest.mark.parametrize(("name", "text"), [("j.toml", "= ="), ("j.json", "{"), ("none.json", None)])
def test_unreadable_files_are_named(tmp_path: Path, name: str, text: str | None) -> None:
    """A missing or broken file is a SpecError with its path."""
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(SpecError, match=name):
        load_spec(tmp_path / name)


@pytest.mark.parametrize(
    ("page", "render"),
    [
        ("reference/job-file.md", "render"),
        ("reference/commands.md", "render_commands"),
        ("reference/settings.md", "render_settings"),
    ],
)
def test_every_setting_is_documented(page: str, render: str) -> None:
    """The pages are what `make docs` writes today, and no field or flag is without a word."""
    import runpy

    want = runpy.run_path(str(REPO / "scripts" / "write_reference.py"))[render]()
    assert (REPO / "docs" / page).read_text(encoding="utf-8") == want
    undocumented = [line for line in want.splitlines() if line.startswith("| `") and line.endswith("|  |")]
    assert undocumented == []


def test_toml_can_say_that_a_job_only_scores(tmp_path: Path) -> None:
    """TOML has no null, so `prune = false` stands for it."""
    path = tmp_path / "job.toml"
    path.write_text('prune = false\ninput.paths = ["a"]\nmodel.name = "m"\noutput.path = "o"\n')
    spec = load_spec(path)
    assert spec.prune is None
    assert spec == parse_spec({**spec.model_dump(mode="json"), "prune": None})
    with pytest.raises(SpecError, match="prune"):
        parse_spec({**spec.model_dump(mode="json"), "prune": True})
