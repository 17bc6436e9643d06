"""Actors load the model that the driver planned: from object stores, at a commit of the hub, with equal files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import ModelError, OutputConflictError
from qtune_service.output.layout import Output
from qtune_service.pipeline import stages
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.run import run_job
from qtune_service.pipeline.score_shard import ScoreShard
from qtune_service.pipeline.stages import prepare
from qtune_service.scoring.model_config import describe_model
from qtune_service.storage import model_cache
from tests.compare import differences
from tests.finished_outputs import DrawnScorer, SilentSink, demo_records
from tests.hub_server import Hub, hub_server, new_name
from tests.jobs import DEMO_MODEL, environment, manifest, qtune, write_jsonl
from tests.s3 import S3Endpoint

LOADED = """
import json, sys
from qtune_service.config import JobSpec
from qtune_service.pipeline.score_shard import ScoreShard
from qtune_service.pipeline.stages import prepare
context, _ = prepare(JobSpec.model_validate_json(sys.argv[1]))
print(context.model.revision, flush=True)
sys.stdin.readline()
scorer = ScoreShard(context)._scorer
print(float(scorer._model.get_output_embeddings().weight.float().sum()))
"""


def job(folder: Path, model: str, out: str = "out", engine: str = "reference", **fields: Any) -> JobSpec:
    """Return a job over a few records."""
    folder.mkdir(exist_ok=True, parents=True)
    data = folder / "data.jsonl"
    if not data.exists():
        write_jsonl(data, demo_records()[:12])
    return JobSpec(
        input=InputSpec(paths=(str(data),)),
        model=ModelSpec(name=model, dtype="float32", **fields),
        engine=EngineSpec(name=engine),
        output=OutputSpec(path=str(folder / out)),
    )


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """Return a copy of the demo model."""
    shutil.copytree(DEMO_MODEL, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the model cache of this node, empty."""
    monkeypatch.setenv(model_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def upload(s3: S3Endpoint, name: str) -> str:
    """Put the demo model on the store and return its URI."""
    for file in Path(DEMO_MODEL).iterdir():
        s3.put(f"{name}/{file.name}", file.read_bytes())
    return s3.uri(name)


class NamingScorer(DrawnScorer):
    """Remembers the model that it was given."""

    given: ModelSpec

    def __init__(self, model: ModelSpec, engine: EngineSpec) -> None:
        super().__init__(model, engine)
        type(self).given = model


def test_a_model_on_an_object_store_is_scored_as_a_folder_is(s3: S3Endpoint, tmp_path: Path, cache: Path) -> None:
    """A job with an `s3://` model and the reference engine gives the scores of the same job with a folder."""
    run_job(job(tmp_path, upload(s3, "demo")), SilentSink(), executor=LocalExecutor())
    run_job(job(tmp_path, DEMO_MODEL, "local"), SilentSink(), executor=LocalExecutor())
    assert differences(tmp_path / "local", tmp_path / "out", tolerance=0) == []
    assert manifest(tmp_path / "out")["spec"]["model"]["name"] == s3.uri("demo")
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 2  # the driver's without weights


def test_commands_read_models_on_object_stores(s3: S3Endpoint, tmp_path: Path, cache: Path) -> None:
    """`preview` and `estimate` fetch configuration and tokenizer only."""
    data, model = job(tmp_path, "m").input.paths[0], upload(s3, "commands")
    for command in (["preview", data, "--model", model], ["estimate", data, "--model", model]):
        done = qtune(*command)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not list(cache.rglob("*.safetensors"))


def test_weights_that_a_loader_streams_are_not_fetched(s3: S3Endpoint, tmp_path: Path, cache: Path) -> None:
    """With vLLM's streaming loader an actor gets the URI of the weights, and a folder without them."""
    spec = job(tmp_path, upload(s3, "streamed"), engine=f"{__name__}:NamingScorer")
    context, _ = prepare(spec)
    streamed = spec.engine.model_copy(update={"vllm": {"load_format": "runai_streamer"}})
    model, engine = replace(context, spec=spec.model_copy(update={"engine": streamed})).engine()
    assert engine.vllm["model_weights"] == s3.uri("streamed")
    assert (Path(model.name) / "config.json").is_file()
    assert not list(cache.rglob("*.safetensors"))
    model, engine = context.engine()
    assert "model_weights" not in engine.vllm
    assert (Path(model.name) / "model.safetensors").is_file()


def test_objects_that_changed_after_planning_are_refused(s3: S3Endpoint, tmp_path: Path, cache: Path) -> None:
    """An actor on a fresh node does not load other weights than those that were planned."""
    context, _ = prepare(job(tmp_path, upload(s3, "moving"), engine=f"{__name__}:NamingScorer"))
    assert cache.is_dir()
    s3.put("moving/model.safetensors", Path(DEMO_MODEL, "model.safetensors").read_bytes()[::-1])
    with pytest.raises(ModelError, match="has changed since this job was planned"):
        ScoreShard(context)
    assert describe_model(context.spec.model).fingerprint != context.model.fingerprint


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_another_folder_on_a_node_is_refused(copied: Path, tmp_path: Path, name: str) -> None:
    """A node whose folder has other files than the driver's does not score, and says which node and model it is."""
    context, _ = prepare(job(tmp_path, str(copied), engine=f"{__name__}:NamingScorer"))
    assert ScoreShard(context)._scorer.info
    (copied / name).write_bytes((copied / name).read_bytes() + b" ")
    own = describe_model(context.spec.model).fingerprint
    with pytest.raises(ModelError, match=context.node) as caught:
        ScoreShard(context)
    assert str(copied) in caught.value.message
    assert own[:16] in caught.value.message
    assert context.model.fingerprint[:16] in caught.value.message


def test_another_tokenizer_on_a_node_is_refused(copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that encode compare their tokenizer with the driver's: other tokens would be scored without a trace."""
    context, encoder = prepare(job(tmp_path, str(copied)))
    config = json.loads((copied / "tokenizer_config.json").read_text())
    (copied / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": "{{ messages }}"}))
    monkeypatch.setattr(stages, "_ENCODERS", {})
    with pytest.raises(ModelError, match="the tokenizer of"):
        stages._encoder(replace(context, tokenizer=encoder.fingerprint))


# --- the hub


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """Run a hub for this module."""
    with hub_server() as hub:
        yield hub


def demo_files() -> dict[str, bytes]:
    """Return the files of the demo model."""
    return {file.name: file.read_bytes() for file in Path(DEMO_MODEL).iterdir()}


def other_weights(files: dict[str, bytes]) -> dict[str, bytes]:
    """Return the same model with all weights zero."""
    body = files["model.safetensors"]
    start = 8 + int.from_bytes(body[:8], "little")
    return {**files, "model.safetensors": body[:start] + bytes(len(body) - start)}


@pytest.mark.parametrize("revision", [None, "main"])
def test_actors_load_the_commit_that_was_planned(hub: Hub, tmp_path: Path, revision: str | None) -> None:
    """A branch that moves on between planning and loading does not change the model, on an empty node as well."""
    name, files = new_name(), demo_files()
    made = hub.add(name, files)
    planned = made.branches["main"]
    spec = job(tmp_path, name, revision=revision).model_dump_json()
    process = subprocess.Popen(
        [sys.executable, "-c", LOADED, spec],
        env=environment(hub.env(tmp_path / "home")),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().strip() == planned
    made.commit(other_weights(files))
    total, _ = process.communicate("\n", timeout=120)
    assert process.returncode == 0
    assert float(total) != 0.0


def test_an_output_of_an_earlier_version_keeps_its_fingerprint(tmp_path: Path) -> None:
    """An output that named a branch is resumed. One that names another commit is not."""
    spec = job(tmp_path, DEMO_MODEL)
    Output(spec.output.path).claim(spec, "name@main")
    Output(spec.output.path).claim(spec, "name@commit", "name@main")
    with pytest.raises(OutputConflictError):
        Output(spec.output.path).claim(spec, "name@commit", "name@other")
