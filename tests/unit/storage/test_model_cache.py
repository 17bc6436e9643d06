"""storage/model_cache.py: models on an object store, fetched once a node, complete or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qtune_service.errors import ModelError, StorageError
from qtune_service.storage import model_cache
from qtune_service.storage.file_io import Entry
from qtune_service.storage.model_cache import fetch, find_model
from tests.jobs import environment
from tests.s3 import S3Endpoint, faulty
from tests.waiting import wait_until

FETCH = """
import json, sys
from qtune_service.storage import model_cache
from qtune_service.storage.file_io import Entry
downloads = []
download = model_cache._download_file
model_cache._download_file = lambda entry, path: (downloads.append(path.name), download(entry, path))
folder, version = model_cache.fetch(sys.argv[1], weights=True)
print(json.dumps([str(folder), version, downloads]))
"""
FILES: Mapping[str, bytes] = {
    "config.json": b"{}",
    "tokenizer.json": b"{}" * 50,
    "model.safetensors": bytes(range(256)) * 4000,
    "pytorch_model.bin": b"the same weights again",
    "consolidated.safetensors": b"and again",
    "original/consolidated.00.pth": b"and again",
    "additional_chat_templates/rag.jinja": b"{{ messages }}",
    ".gitattributes": b"*",
}
NEEDED = {"additional_chat_templates/rag.jinja", "config.json", "model.safetensors", "tokenizer.json"}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an empty cache folder, which the environment names."""
    monkeypatch.setenv(model_cache.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def model(s3: S3Endpoint, request: pytest.FixtureRequest) -> str:
    """Return the URI of a model of this test's own."""
    for name, body in FILES.items():
        s3.put(f"{request.node.name}/{name}", body)
    return s3.uri(request.node.name)


def key(s3: S3Endpoint, uri: str, name: str) -> str:
    """Return the key of a model's file."""
    return f"{uri.removeprefix(s3.uri(''))}/{name}"


def names(folder: Path) -> set[str]:
    """Return the paths of the files below a folder."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def start(uri: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """Fetch a model in a process of its own."""
    command = [sys.executable, "-c", FETCH, uri]
    return subprocess.Popen(command, env=environment(env), stdout=subprocess.PIPE, text=True)


def test_a_model_is_what_loading_needs(model: str, cache: Path) -> None:
    """Weights in other formats, copies and hidden files are left out. A driver fetches no weights."""
    folder, version = fetch(model, weights=False)
    assert names(folder) == NEEDED - {"model.safetensors"}
    whole, same = fetch(model, weights=True)
    assert (names(whole), same) == (NEEDED, version)
    assert all((whole / name).read_bytes() == FILES[name] for name in NEEDED)
    assert fetch(model, weights=False) == (whole, version)  # one with weights serves both
    assert names(cache) == {f"{f.name}/{name}" for f in (folder, whole) for name in names(f)} | {
        f"{folder.name}.lock",
        f"{whole.name}.lock",
    }


def test_a_planned_version_needs_no_listing(model: str, s3: S3Endpoint, cache: Path) -> None:
    """Actors find the planned version on their node although the objects have changed or gone; others refuse."""
    folder, version = fetch(model, weights=True)
    s3.put(key(s3, model, "model.safetensors"), b"other weights")
    assert fetch(model, weights=True, version=version) == (folder, version)
    other, changed = fetch(model, weights=True)
    assert changed != version
    assert other != folder
    with pytest.raises(ModelError, match="has changed since this job was planned"):
        fetch(model, weights=True, version="0" * 64)
    assert cache.is_dir()


def test_processes_of_a_node_fetch_once(model: str, s3: S3Endpoint, cache: Path) -> None:
    """Of three processes at once one fetches, and all get the same complete folder."""
    with ThreadPoolExecutor(3) as pool, faulty(s3) as faults:
        faults.mode = "slow"
        found = list(pool.map(lambda _: _result(start(model, faults.endpoint.env)), range(3)))
    assert len({(folder, version) for folder, version, _ in found}) == 1
    assert sorted(len(downloads) for *_, downloads in found) == [0, 0, len(NEEDED)]
    assert names(Path(found[0][0])) == NEEDED
    assert found[0][0].startswith(str(cache))


def _result(process: subprocess.Popen[str]) -> tuple[str, str, list[str]]:
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    folder, version, downloads = json.loads(text)
    return folder, version, downloads


def test_a_killed_download_is_continued(model: str, s3: S3Endpoint, cache: Path) -> None:
    """After kill -9 in the middle nothing counts as complete, the next process keeps whole files and fetches others."""
    for number in range(8):
        s3.put(key(s3, model, f"a-{number}.json"), b"small")
    with faulty(s3) as faults:
        faults.mode = "slow"
        process = start(model, faults.endpoint.env)
        wait_until(lambda: len(list(cache.glob("*.part/a-*.json"))) >= 3, 60)
        process.kill()
        process.wait()
    (part,) = cache.glob("*.part")
    whole = {path.name: path.stat().st_ino for path in part.glob("*.json")}
    assert not [path for path in cache.iterdir() if path.is_dir() and path != part]
    folder, _, downloads = _result(start(model))
    assert {name: (Path(folder) / name).stat().st_ino for name in whole} == whole
    assert not set(downloads) & set(whole)
    assert "model.safetensors" in downloads
    assert names(Path(folder)) == NEEDED | {f"a-{number}.json" for number in range(8)}
    assert (Path(folder) / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert not part.exists()


def test_large_files_come_in_parts(model: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of many parts is put together in order, whichever part comes first."""
    monkeypatch.setattr(model_cache, "PART_BYTES", 999)
    folder, _ = fetch(model, weights=True)
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert cache in folder.parents


def test_objects_that_change_meanwhile_are_refused(
    model: str, s3: S3Endpoint, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is replaced while the model is fetched makes no mixture of two models."""
    download = model_cache._download_file

    def replaced(entry: Entry, path: Path) -> None:
        download(entry, path)
        if path.name == "model.safetensors":
            s3.put(key(s3, model, "model.safetensors"), FILES["model.safetensors"][::-1])

    monkeypatch.setattr(model_cache, "_download_file", replaced)
    with pytest.raises(StorageError, match=r"model\.safetensors changed while it was fetched"):
        fetch(model, weights=True)
    assert [path.suffix for path in cache.iterdir()] == [".lock"]


def test_a_full_disk_is_found_before(model: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that does not fit on the disk is refused with the sizes and the setting."""
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(StorageError, match=r"needs .* GB in .*cache, which has 0\.0 GB") as caught:
        fetch(model, weights=True)
    assert model_cache.CACHE_VARIABLE in caught.value.hint
    assert cache.is_dir()


@pytest.mark.parametrize(
    ("uri", "told"), [("nothing/there", "has no config.json"), ("hf://models/org/name", "is named by its id")]
)
def test_no_model(uri: str, told: str, s3: S3Endpoint) -> None:
    """A URI without a model is refused with what to give."""
    with pytest.raises(ModelError, match=told):
        find_model(uri if "://" in uri else s3.uri(uri))


def test_the_cache_is_beside_the_hub_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a setting models are kept in HF_HOME, so that one volume holds both."""
    monkeypatch.delenv(model_cache.CACHE_VARIABLE, raising=False)
    monkeypatch.setenv("HF_HOME", "/models/hf")
    assert model_cache.cache_root() == Path("/models/hf/qtune-models")
