"""Both executors run the same job: the local one and Ray give the same output."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec, PruneSpec
from qtune_service.pipeline.executor import Executor, LocalExecutor
from qtune_service.pipeline.ray_executor import RayExecutor
from qtune_service.pipeline.run import run_job
from tests.finished_outputs import SilentSink, demo_records
from tests.jobs import DEMO_MODEL, write_jsonl

DATA_FOLDERS = ("scores", "rejected", "quadrants", "pruned", "tokenizer")
VARYING = ("created_at", "seconds", "performance", "spec")
"""Parts of a manifest that differ between two runs: times, speeds, and the path of the output."""


def data_files(out: Path) -> dict[str, str]:
    """Return path -> SHA-256 of the files with data."""
    paths = [path for folder in DATA_FOLDERS for path in sorted((out / folder).rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Prune the same records, some of them bad, under both executors with the reference engine."""
    folder = tmp_path_factory.mktemp("executors")
    data = write_jsonl(folder / "data.jsonl", demo_records())
    with data.open("a") as file:
        file.write('{"id": "broken"\n')
    spec = JobSpec(
        input=InputSpec(paths=(str(data),), category_field="category", shard_bytes=8192),
        model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
        engine=EngineSpec(name="reference"),
        prune=PruneSpec(sample_keep_ratio=0.4),
        output=OutputSpec(path="replaced"),
    )
    executors: dict[str, Executor] = {"ray": RayExecutor(), "local": LocalExecutor()}
    found = {}
    for name, executor in executors.items():
        out = folder / name
        job = spec.model_copy(update={"output": OutputSpec(path=str(out))})
        found[name] = out, run_job(job, SilentSink(), executor=executor)
    return found


def test_all_data_files_are_equal_byte_for_byte(outputs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Scores, rejected records, quadrants, pruned samples and the tokenizer do not depend on the executor."""
    (ray, _), (local, _) = outputs["ray"], outputs["local"]
    files = data_files(ray)
    assert len(files) > 10
    assert data_files(local) == files


def test_manifests_are_equal_except_for_times(outputs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """Counts, thresholds, files with their hashes, engine, versions and the scoring sum are equal."""
    ray, local = ({k: v for k, v in body.items() if k not in VARYING} for _, body in outputs.values())
    assert set(ray) >= {"counts", "tokens", "thresholds", "selection", "files", "engine", "packages", "scoring"}
    assert local == ray
    specs = [{k: v for k, v in body["spec"].items() if k != "output"} for _, body in outputs.values()]
    assert specs[0] == specs[1]


def test_statistics_and_plane_are_equal(outputs: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """The files that the report is made of agree, except for times and the path of the output in commands."""
    for name in ("summary_statistics.json", "plane.json"):
        ray, local = (json.loads((out / name).read_text().replace(str(out), "OUT")) for out, _ in outputs.values())
        assert {key for key in ray if ray[key] != local.get(key)} <= {"created_at", "seconds"}, name
