"""Results over HTTP: summary, samples, files, under uvicorn; the output is made by the job's own stages."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest

from qtune_service.job_states import JobStatus
from qtune_service.output.reader import FinishedOutput
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory, outputs: FinishedOutputs) -> Iterator[httpx.Client]:
    """Yield a client of a server that has one finished job. The base URL of the client is the job's."""
    folder = tmp_path_factory.mktemp("server")
    with serving(settings(folder), scripted(folder)) as made:
        job = finished_job(folder, outputs.pruned)
        made.base_url = httpx.URL(f"{made.base_url}/api/v1/jobs/{job}/")
        yield made


def finished_job(folder: Path, finished: FinishedOutput) -> str:
    """Store a job that has an output in the server's database, and return its id."""
    spec = finished.spec.model_dump(mode="json")
    return store_job(database_of(folder), finished.root, JobStatus.succeeded, spec)


def test_summary_and_report(client: httpx.Client) -> None:
    """The numbers, and the page in a sandbox."""
    assert client.get("summary").json()["counts"]["scored"] == NUM_SAMPLES
    report = client.get("report")
    assert report.text.startswith("<!doctype html>")
    assert "sandbox" in report.headers["content-security-policy"]


def test_samples_by_quadrant_order_and_condition(client: httpx.Client) -> None:
    """With tokens; the number of all that match."""
    found = client.get("samples", params={"quadrant": "Q2", "sort": "borderline", "limit": 2}).json()
    assert len(found["samples"]) == 2 < found["total"]
    assert {sample["quadrant"] for sample in found["samples"]} == {"Q2"}
    assert any(token["state"] == "kept" for token in found["samples"][0]["tokens"])
    short = client.get("samples", params={"where": "num_tokens < 7 and category = 'town'", "limit": 100}).json()
    assert short["total"] == len(short["samples"]) > 0
    assert all(s["num_tokens"] < 7 and s["own"]["category"] == "town" for s in short["samples"])


def test_one_sample(client: httpx.Client) -> None:
    """By its id; another one is a 422 with near ones."""
    first = client.get("samples", params={"limit": 1}).json()["samples"][0]
    assert client.get(f"samples/{first['sample_id']}").json() == first
    missing = client.get("samples/0000-99999999")
    assert (missing.status_code, missing.json()["code"]) == (422, "query")


@pytest.mark.parametrize("where", ["1=1) union select 1 --", "read_csv('/etc/passwd') is null", "(select 1) = 1", "x("])
def test_hostile_conditions_are_refused(client: httpx.Client, where: str) -> None:
    """With 422 and a reason."""
    refused = client.get("samples", params={"where": where})
    assert (refused.status_code, refused.json()["code"]) == (422, "query")
    assert "root:" not in refused.text


def test_files_are_what_the_manifest_says(client: httpx.Client) -> None:
    """Each with its size and digest; a pruned one is Parquet."""
    listed = client.get("files").json()
    assert {"manifest.json", "report.html", "tokenizer/tokenizer.json"} <= {file["path"] for file in listed}
    for file in listed:
        got = client.get(f"files/{file['path']}")
        assert len(got.content) == file["size_bytes"] == int(got.headers["content-length"])
        if file["sha256"]:
            assert hashlib.sha256(got.content).hexdigest() == file["sha256"]
    (path, *_) = (file["path"] for file in listed if file["path"].startswith("pruned/"))
    assert "input_ids" in pq.read_table(io.BytesIO(client.get(f"files/{path}").content)).column_names


def test_ranges_and_conditions(client: httpx.Client) -> None:
    """Parts, ends, what has not changed, and what cannot be met."""
    path = "files/manifest.json"
    whole = client.get(path)
    size, tag = len(whole.content), whole.headers["etag"]
    for header, want in (("bytes=0-9", slice(0, 10)), ("bytes=5-", slice(5, None)), ("bytes=-7", slice(-7, None))):
        part = client.get(path, headers={"Range": header})
        assert (part.status_code, part.content) == (206, whole.content[want])
        assert part.headers["content-range"].endswith(f"/{size}")
    assert client.get(path, headers={"Range": f"bytes={size}-"}).status_code == 416
    assert client.get(path, headers={"If-None-Match": f'W/"x", {tag}'}).status_code == 304
    assert client.get(path, headers={"Range": "bytes=0-9", "If-Range": '"other"'}).content == whole.content
    head = client.head(path)
    assert (head.content, head.headers["content-length"], head.headers["etag"]) == (b"", str(size), tag)


@pytest.mark.parametrize(
    "path",
    [
        "%2e%2e/qtune.db",
        "_qtune/job.json",
        "tokenizer/%2e%2e/_qtune/job.json",
        "tokenizer/%2e%2e",
        "%2fetc%2fpasswd",
        "x",
    ],
)
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    """Not what lies beside the output, nor its working files."""
    assert client.get(f"files/{path}").status_code in (404, 422)


def test_the_archive_holds_the_product(client: httpx.Client) -> None:
    """A tar, by default without the scores."""
    with tarfile.open(fileobj=io.BytesIO(client.get("archive").content)) as tar:
        names = tar.getnames()
        assert "manifest.json" in names
        assert any(name.startswith("pruned/") for name in names)
        assert not any(name.startswith("scores/") for name in names)
        member = tar.extractfile("manifest.json")
        assert member is not None
        assert member.read() == client.get("files/manifest.json").content
    with tarfile.open(fileobj=io.BytesIO(client.get("archive", params={"scores": True}).content)) as tar:
        assert any(name.startswith("scores/") for name in tar.getnames())


def test_a_job_without_a_result_says_so(tmp_path: Path) -> None:
    """409, not an empty answer."""
    with serving(settings(tmp_path), scripted(tmp_path)) as made:
        body = {"input": {"paths": [f"{tmp_path}/inputs/a"]}, "model": {"name": "fail"}}
        job = made.post("/api/v1/jobs", json=body).json()["id"]
        answer = made.get(f"/api/v1/jobs/{job}/summary")
        assert (answer.status_code, answer.json()["code"]) == (409, "output_conflict")
