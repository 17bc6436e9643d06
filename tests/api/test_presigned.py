"""Downloads that a store gives itself: URLs as AWS' own library signs them, and a real S3 endpoint."""

from __future__ import annotations

import hashlib
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import boto3
import httpx
import pytest
from botocore.config import Config

from qtune_service.client import Client
from qtune_service.job_states import JobStatus
from qtune_service.storage.filesystems import presigned
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job
from tests.finished_outputs import FinishedOutputs
from tests.s3 import S3Endpoint

KEYS = {"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "a/secret+key", "AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Credentials in the environment, and nothing else of AWS."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.mark.parametrize("token", ["", "a/session+token=="])
@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9000", "https://minio.example"])
@pytest.mark.parametrize("bucket", ["results", "with.dots"])
@pytest.mark.parametrize("key", ["a/part-0.parquet", "a b/ü+~'(x).json", "a%20b/=&.html"])
def test_urls_are_those_of_botocore(keys: pytest.MonkeyPatch, token: str, endpoint: str, bucket: str, key: str) -> None:
    """The same host, path and signature for the same time."""
    if token:
        keys.setenv("AWS_SESSION_TOKEN", token)
    if endpoint:
        keys.setenv("AWS_ENDPOINT_URL", endpoint)
    is_path = "path" if endpoint or "." in bucket else "virtual"
    config = Config(signature_version="s3v4", s3={"addressing_style": is_path})
    client = boto3.Session().client("s3", region_name="eu-west-1", config=config, endpoint_url=endpoint or None)
    answered = {"ResponseContentDisposition": 'attachment; filename="a b"', "ResponseContentType": "text/html"}
    params = {"Bucket": bucket, "Key": key, **answered}
    theirs = urlsplit(client.generate_presigned_url("get_object", Params=params, ExpiresIn=900))
    ours = presigned(
        f"s3://{bucket}/{key}",
        seconds=900,
        answered={"response-content-disposition": 'attachment; filename="a b"', "response-content-type": "text/html"},
        at=parse_qs(theirs.query)["X-Amz-Date"][0],
    )
    assert ours is not None
    mine = urlsplit(ours)
    assert (mine.scheme, mine.netloc, mine.path) == (theirs.scheme, theirs.netloc, theirs.path)
    assert parse_qs(mine.query) == parse_qs(theirs.query)


def test_only_what_can_be_signed(keys: pytest.MonkeyPatch) -> None:
    """No other places, nothing anonymous, nothing without credentials."""
    assert presigned("s3://results/a?region=eu-west-1", seconds=60) is not None
    for uri in ("/data/a", "gs://results/a", "s3://results/a?anonymous=true"):
        assert presigned(uri, seconds=60) is None
    keys.delenv("AWS_SECRET_ACCESS_KEY")
    assert presigned("s3://results/a", seconds=60) is None


@pytest.fixture
def stored(s3: S3Endpoint, outputs: FinishedOutputs) -> str:
    """Return the URI of a finished output on S3."""
    root = Path(outputs.pruned.root)
    for path in root.rglob("*"):
        if path.is_file():
            s3.put(f"out/{path.relative_to(root)}", path.read_bytes())
    return s3.uri("out")


@pytest.mark.parametrize("may_redirect", [True, False])
def test_files_come_from_the_store(s3: S3Endpoint, stored: str, tmp_path: Path, may_redirect: bool) -> None:
    """Through a URL of the store where the owner wants that; else through the server. The same bytes, ranges, names."""
    with serving(settings(tmp_path, presigned_downloads=may_redirect), scripted(tmp_path)) as client:
        job = store_job(database_of(tmp_path), stored, JobStatus.succeeded)
        address = f"{client.base_url}/api/v1/jobs/{job}/files"
        listed = client.get(address).json()
        wanted = next(file for file in listed if file["path"].startswith("pruned/"))
        url = f"{address}/{wanted['path']}"
        first = client.get(url)
        assert first.status_code == (307 if may_redirect else 200)
        if may_redirect:
            assert first.headers["location"].startswith(f"{s3.url}/{s3.bucket}/out/pruned/")
            assert first.headers["cache-control"] == "no-store"
        got = httpx.get(url, follow_redirects=True)
        assert hashlib.sha256(got.content).hexdigest() == wanted["sha256"]
        assert got.headers["content-type"] == "application/vnd.apache.parquet"
        name = wanted["path"].rpartition("/")[2]
        assert got.headers["content-disposition"] == f'attachment; filename="{name}"'
        part = httpx.get(url, follow_redirects=True, headers={"Range": "bytes=4-9"})
        assert (part.status_code, part.content) == (206, got.content[4:10])
        assert client.head(url).headers["content-length"] == str(wanted["size_bytes"])
        assert client.get(url, headers={"If-None-Match": f'"{wanted["sha256"]}"'}).status_code == 304
        assert client.get(f"/api/v1/jobs/{job}/archive").status_code == 200


def test_the_client_follows_to_the_store(
    stored: str, outputs: FinishedOutputs, tmp_path: Path, no_config: None
) -> None:
    """All files, checked, and again: nothing is wrong."""
    server = serving(settings(tmp_path, presigned_downloads=True), scripted(tmp_path))
    with server as made, Client(str(made.base_url)) as client:
        job = store_job(database_of(tmp_path), stored, JobStatus.succeeded)
        got = client.download(job, tmp_path / "got")
        assert client.download(job, tmp_path / "got") == got
    for path in got:
        assert path.read_bytes() == Path(outputs.pruned.root, path.relative_to(tmp_path / "got")).read_bytes()
