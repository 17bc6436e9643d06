"""What a client sends and looks at: datasets, previews, results of a finished job."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from qtune_service.client import Client, Transfer
from qtune_service.errors import (
    BadDatasetError,
    ChecksumMismatchError,
    DataError,
    DatasetInUseError,
)
from tests.api.harm import wire
from tests.api.servers import scripted, serving, settings
from tests.api.test_client import port_of
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs
from tests.jobs import DEMO_DATA, DEMO_MODEL

pytestmark = pytest.mark.usefixtures("no_config")


def test_datasets_are_sent_and_read_by_jobs(typed_client: Client, tmp_path: Path) -> None:
    """Streamed, with a digest, progress and rows; named by a job, kept while it needs them, listed and removed."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 70_000)
    told: list[Transfer] = []
    sent = typed_client.upload(file, watcher=told.append)
    assert (sent.name, sent.rows, sent.size_bytes) == ("mine.jsonl", 70_000, file.stat().st_size)
    assert sent.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    assert [(t.bytes_done, t.files_done) for t in told[-1:]] == [(file.stat().st_size, 1)]
    assert len(told) > 2
    other = typed_client.upload(file, "other.jsonl")
    assert [found.id for found in typed_client.datasets()] == [other.id, sent.id]
    made = typed_client.submit({"input": {"paths": [sent.uri]}, "model": {"name": "sleep"}})
    with pytest.raises(DatasetInUseError):
        typed_client.delete_dataset(sent.uri)
    typed_client.cancel(made.id)
    typed_client.wait(made.id)
    typed_client.delete_dataset(sent.uri)
    typed_client.delete_dataset(other.id)
    assert list(typed_client.datasets()) == []


def test_uploads_that_cannot_be(typed_client: Client, tmp_path: Path) -> None:
    """A file that is not there, and one that is none: the server's own error, though it answers while bytes come."""
    with pytest.raises(DataError, match="cannot read"):
        typed_client.upload(tmp_path / "none.jsonl")
    wrong = tmp_path / "wrong.jsonl"
    wrong.write_bytes(b"\0" * 8_000_000)
    with pytest.raises(BadDatasetError):
        typed_client.upload(wrong)
    assert list(typed_client.datasets()) == []


def test_bytes_of_an_upload_that_change_on_the_way(server_url: str, tmp_path: Path) -> None:
    """Are refused by the server, which knows the digest: nothing is stored."""
    file = tmp_path / "mine.jsonl"
    file.write_text('{"prompt": "a", "completion": "b"}\n' * 10)
    changing = wire(port_of(server_url), there=lambda block: block.replace(b'"b"', b'"c"'))
    with changing as way, Client(f"http://127.0.0.1:{way.port}") as client, pytest.raises(ChecksumMismatchError):
        client.upload(file)
    with Client(server_url) as client:
        assert list(client.datasets()) == []


def test_what_the_server_offers(typed_client: Client, tmp_path: Path) -> None:
    """Its owner's word."""
    offered = typed_client.server()
    assert offered.allowed_inputs == [f"{tmp_path}/inputs"]
    assert "succeed" in offered.allowed_models


def test_a_preview(tmp_path: Path) -> None:
    """Tokens and mask of the first samples, before a job is run."""
    allowed = settings(tmp_path, allowed_models=(DEMO_MODEL,))
    with serving(allowed, scripted(tmp_path)) as made, Client(str(made.base_url)) as client:
        data = client.upload(DEMO_DATA)
        seen = client.preview({"input": {"paths": [data.uri]}, "model": {"name": DEMO_MODEL}}, n=2)
    assert len(seen.samples) == 2
    assert len(seen.samples[0].tokens) == len(seen.samples[0].loss_mask)
    assert sum(seen.samples[0].loss_mask) == seen.samples[0].num_trained > 0


def test_the_result_of_a_job(tmp_path: Path, outputs: FinishedOutputs) -> None:
    """Summary, plane, samples, one of them, rejected records, report."""
    with serving(settings(tmp_path), scripted(tmp_path)) as made, Client(str(made.base_url)) as client:
        done = finished_job(tmp_path, outputs.pruned)
        assert client.summary(done)["counts"]["scored"] == NUM_SAMPLES
        assert client.plane(done)
        found = client.samples(done, quadrant="Q2", kept=True, sort="borderline", limit=2)
        assert len(found.samples) == 2 < found.total
        assert client.sample(done, found.samples[0]["sample_id"]) == found.samples[0]
        rejected = client.rejected(done, limit=1)
        assert (len(rejected.records), rejected.total) == (1, sum(rejected.by_reason.values()))
        assert client.report(done).startswith("<!doctype html>")
