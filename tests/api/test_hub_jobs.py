"""The service with a private dataset of the hub: a job on Ray reads it with the server's token, which stays inside."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.api.test_end_to_end import is_at
from tests.hub_server import Hub, hub_server
from tests.jobs import DEMO_DATA, DEMO_MODEL, QTUNE, environment
from tests.waiting import free_port, wait_for_answer, wait_until_ready

TOKEN, ROWS = "hf_reader", 80
ALLOWED, OTHER = "hf://datasets/org/allowed", "hf://datasets/org/other"


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    """Run a hub with two private datasets of two splits."""
    sink = io.BytesIO()
    records = [json.loads(line) for line in DEMO_DATA.read_text().splitlines()[:ROWS]]
    pq.write_table(pa.Table.from_pylist(records), sink, row_group_size=20)
    with hub_server() as made:
        for name in ("org/allowed", "org/other"):
            files = {f"data/{split}-00000-of-00001.parquet": sink.getvalue() for split in ("train", "test")}
            made.add(name, files, private=True, readers={"reader"})
        yield made


def test_a_job_reads_a_dataset_that_is_allowed(hub: Hub, tmp_path: Path) -> None:
    """Preview and job read the split with the server's token, and neither shows it. Another dataset is refused."""
    port = free_port()
    allowed = {"QTUNE_ALLOWED_INPUTS": f"{ALLOWED}:/data", "QTUNE_ALLOWED_MODELS": DEMO_MODEL}
    env = environment({**hub.env(tmp_path / "home", TOKEN), **allowed})
    serve = subprocess.Popen([*QTUNE, "serve", "--data-root", str(tmp_path / "data"), "--port", str(port)], env=env)
    body = {"model": {"name": DEMO_MODEL, "dtype": "float32"}, "engine": {"name": "reference"}}
    read = {"paths": [ALLOWED], "split": "train", "shard_bytes": 4096}
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client)
            refused = client.post("/api/v1/jobs", json={**body, "name": "x", "input": {**read, "paths": [OTHER]}})
            assert (refused.status_code, refused.json()["code"]) == (403, "not_allowed")
            shown = client.post("/api/v1/preview", json={"input": read, "model": body["model"], "n": 1})
            assert shown.status_code == 200, shown.text
            unclear = client.post(
                "/api/v1/preview", json={"input": {"paths": [ALLOWED]}, "model": body["model"], "n": 1}
            )
            assert (unclear.status_code, unclear.json()["code"]) == (422, "data")
            assert "several splits: train, test" in unclear.text
            made = client.post("/api/v1/jobs", json={**body, "name": "hub", "input": read})
            assert made.status_code == 201, made.text
            path = made.headers["location"]
            job = wait_for_answer(client, path, lambda job: is_at(job, status="succeeded"))
            assert job["counts"]["read"] == ROWS
            texts = [client.get(path).text, client.get(f"{path}/logs").text, shown.text, unclear.text]
    finally:
        serve.terminate()
        serve.wait(30)
    commit = hub.repositories["org/allowed"].branches["main"]
    (manifest,) = (tmp_path / "data" / "outputs").rglob("manifest.json")
    assert json.loads(manifest.read_text())["revisions"] == {ALLOWED: commit}
    assert not any(TOKEN in text for text in texts)
    files = [file for file in (tmp_path / "data").rglob("*") if file.is_file()]
    assert not [file for file in files if TOKEN.encode() in file.read_bytes()]
    assert not hub.paths("org/other")
