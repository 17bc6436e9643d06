"""Jobs that read a dataset of the hub: commits, resuming, and where the token goes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import DataError, EngineError, OutputConflictError
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.run import run_job
from tests.finished_outputs import DeadScorer, SilentSink, demo_records
from tests.hub_environment import use_hub
from tests.hub_server import Hub, hub_server, new_name
from tests.jobs import DEMO_MODEL, manifest, qtune, rows

TOKEN = "hf_reader"
LINES = "".join(json.dumps(record) + "\n" for record in demo_records())


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """Run a hub for this module."""
    with hub_server() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Point this process to the hub, with a token."""
    return use_hub(server, monkeypatch, tmp_path / "home", TOKEN)


def job(folder: Path, *paths: str, engine: str = "DrawnScorer", **fields: str) -> JobSpec:
    """Return a job over several shards."""
    return JobSpec(
        input=InputSpec.model_validate({"paths": paths, "shard_bytes": 4096, **fields}),
        model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
        engine=EngineSpec(name=f"tests.finished_outputs:{engine}"),
        output=OutputSpec(path=str(folder / "out")),
    )


def test_a_resumed_job_reads_the_commit_of_its_plan(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The branch moves on between two runs of the same command: the second one continues with the same bytes."""
    monkeypatch.setattr(DeadScorer, "calls", 0)
    name = new_name()
    made = hub.add(name, {"train.jsonl": LINES, "test.jsonl": LINES}, private=True, readers={"reader"})
    old = made.branches["main"]
    spec = job(tmp_path, f"hf://datasets/{name}", engine="DeadScorer", split="train")
    with pytest.raises(EngineError, match="the engine died"):
        run_job(spec, SilentSink(), executor=LocalExecutor())
    assert len(list((tmp_path / "out" / "_qtune" / "scored").iterdir())) == 1
    made.commit({"train.jsonl": b"{}\n"})
    run_job(spec, SilentSink(), executor=LocalExecutor())
    found = manifest(tmp_path / "out")
    assert found["revisions"] == {f"hf://datasets/{name}": old}
    assert found["spec"]["input"]["paths"] == [f"hf://datasets/{name}"]
    assert found["counts"]["read"] == len(demo_records())
    source = f"hf://datasets/{name}@{old}/train.jsonl"
    assert {row["source"] for row in rows(tmp_path / "out" / "scores")} == {source}


def test_the_token_is_written_nowhere(hub: Hub, tmp_path: Path) -> None:
    """No file of an output and no progress line contains it."""
    name = new_name()
    hub.add(name, {"a.jsonl": LINES}, private=True, readers={"reader"})
    run_job(job(tmp_path, f"hf://datasets/{name}"), SilentSink(), executor=LocalExecutor())
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not [path for path in files if TOKEN.encode() in path.read_bytes()]


def test_scores_of_the_hub_are_pruned_again_without_it(hub: Hub, tmp_path: Path) -> None:
    """`from_scores` needs no request, and the new manifest names the commit."""
    name = new_name()
    hub.add(name, {"a.jsonl": LINES}, private=True, readers={"reader"})
    first = job(tmp_path / "1", f"hf://datasets/{name}")
    run_job(first, SilentSink(), executor=LocalExecutor())
    commits = manifest(tmp_path / "1" / "out")["revisions"]
    hub.requests.clear()
    again = job(tmp_path / "2", f"hf://datasets/{name}").model_copy(update={"from_scores": first.output.path})
    run_job(again, SilentSink(), executor=LocalExecutor())
    assert manifest(tmp_path / "2" / "out")["revisions"] == commits
    assert not hub.requests


def test_another_split_is_another_job(hub: Hub, tmp_path: Path) -> None:
    """An output belongs to its configuration and split. A job without a choice writes nothing."""
    name = new_name()
    hub.add(name, {"train.jsonl": LINES, "test.jsonl": LINES}, private=True, readers={"reader"})
    with pytest.raises(DataError, match="several splits: train, test"):
        run_job(job(tmp_path, f"hf://datasets/{name}"), SilentSink(), executor=LocalExecutor())
    run_job(job(tmp_path, f"hf://datasets/{name}", split="train"), SilentSink(), executor=LocalExecutor())
    with pytest.raises(OutputConflictError):
        run_job(job(tmp_path, f"hf://datasets/{name}", split="test"), SilentSink(), executor=LocalExecutor())


def test_preview_and_estimate(hub: Hub, tmp_path: Path) -> None:
    """Both commands read a dataset by its name, configuration and split, and print no token in an error."""
    name = new_name()
    yaml = "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: a.jsonl}\n---\n"
    made = hub.add(name, {"README.md": yaml, "a.jsonl": LINES, "b.jsonl": "{}\n"}, private=True, readers={"reader"})
    env = hub.env(tmp_path / "home", TOKEN)
    dataset = f"hf://datasets/{name}"
    choice = ("--model", DEMO_MODEL, "--config", "small", "--split", "train")
    shown = qtune("preview", dataset, *choice, "--limit", 2, "--json", env=env)
    assert shown.returncode == 0, shown.stderr
    sources = {sample["source"] for sample in json.loads(shown.stdout)["samples"]}
    assert sources == {f"{dataset}@{made.branches['main']}/a.jsonl"}
    estimated = qtune("estimate", dataset, *choice, "--gpu", "h100", env=env)
    assert estimated.returncode == 0, estimated.stderr
    refused = qtune("preview", dataset, "--model", DEMO_MODEL, "--config", "large", env=env)
    assert refused.returncode == 3
    assert f"{dataset} has no configuration large" in refused.stderr
    assert "Its configurations: small." in refused.stderr
    private = qtune("preview", dataset, "--model", DEMO_MODEL, env={**env, "HF_TOKEN": "hf_unknown"})
    assert private.returncode == 4
    assert "does not accept the token" in private.stderr
    assert "hf_unknown" not in private.stdout + private.stderr
