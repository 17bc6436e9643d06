"""Downloads by the client: in parallel, continued where they were cut, checked, and without the token to others."""

from __future__ import annotations

import hashlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from qtune_service.client import Client, Transfer
from qtune_service.client.transfer import PRODUCT
from qtune_service.errors import ApiError, ChecksumMismatchError, NotFoundError, StorageError, UnreachableError
from qtune_service.output.reader import FinishedOutput
from tests.api.harm import Answer, stand_in, wire
from tests.api.servers import scripted, serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import FinishedOutputs

BIG_BYTES = 3 << 20


@dataclass(frozen=True)
class Served:
    """A server with one finished job that has big files."""

    port: int
    job: str
    big: dict[str, bytes]

    def client(self, port: int | None = None) -> Client:
        """Directly, or by another port."""
        return Client(f"http://127.0.0.1:{port or self.port}")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, outputs: FinishedOutputs) -> Iterator[Served]:
    """Run a server for all tests of this module. None of them changes its output."""
    folder = tmp_path_factory.mktemp("server")
    root = folder / "output"
    shutil.copytree(outputs.pruned.root, root)
    manifest = json.loads((root / "manifest.json").read_text())
    (root / "rejected").mkdir(exist_ok=True)
    contents = {f"rejected/part-9000{i}.parquet": random.Random(i).randbytes(BIG_BYTES) for i in range(3)}
    for path, body in contents.items():
        (root / path).write_bytes(body)
        entry = {"path": path, "bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "rows": 0}
        manifest["files"].append(entry)
    (root / "manifest.json").write_text(json.dumps(manifest))
    with serving(settings(folder), scripted(folder)) as made:
        port = made.base_url.port
        assert port is not None
        yield Served(port, finished_job(folder, FinishedOutput(str(root))), contents)


def leftovers(folder: Path) -> list[str]:
    """Parts of files."""
    return [path.name for path in folder.rglob("*.part")]


def test_all_files_arrive_as_they_are(served: Served, tmp_path: Path) -> None:
    """In their folders, with the bytes of the manifest; progress is told to the end."""
    told: list[Transfer] = []
    with served.client() as client:
        places = client.download(served.job, tmp_path, watcher=told.append)
        listed = client.files(served.job)
    assert {str(place.relative_to(tmp_path)) for place in places} == {file.path for file in listed}
    for file in listed:
        body = (tmp_path / file.path).read_bytes()
        assert file.sha256 in (None, hashlib.sha256(body).hexdigest()), file.path
    end = told[-1]
    assert (end.files_done, end.bytes_done) == (end.files_total, end.bytes_total) == (len(listed), end.bytes_total)
    assert leftovers(tmp_path) == []


def test_files_are_chosen_by_pattern(served: Served, tmp_path: Path) -> None:
    """The product has no scores; a pattern that meets nothing is said."""
    with served.client() as client:
        places = client.download(served.job, tmp_path, PRODUCT)
        folders = {place.relative_to(tmp_path).parts[0] for place in places}
        assert {"pruned", "manifest.json", "report.html", "tokenizer"} <= folders
        assert not folders & {"scores", "quadrants", "rejected"}
        with pytest.raises(NotFoundError, match="prunned"):
            client.download(served.job, tmp_path, ["pruned/*", "prunned/*"])


def test_what_is_there_is_not_fetched_again(served: Served, tmp_path: Path) -> None:
    """Only what is missing or wrong."""
    with wire(served.port) as way, served.client(way.port) as client:
        first, second, _third = client.download(served.job, tmp_path, "rejected/part-9*")
        first.unlink()
        second.write_bytes(b"\0" * BIG_BYTES)
        before = way.bytes_back
        client.download(served.job, tmp_path, "rejected/part-9*")
        assert 2 * BIG_BYTES < way.bytes_back - before < 2.2 * BIG_BYTES
    for path, body in served.big.items():
        assert (tmp_path / path).read_bytes() == body


def test_a_cut_download_goes_on_where_it_was(served: Served, tmp_path: Path) -> None:
    """Cut in every connection but the last ones: no byte that arrived is fetched again."""

    def cut(number: int, at: int, block: bytes) -> bytes | None:
        return None if number <= 4 and at > 600_000 else block

    with wire(served.port, cut) as way, served.client(way.port) as client:
        (place,) = client.download(served.job, tmp_path, "rejected/part-90000*", parallel=1)
        assert way.num_connections >= 4
        assert way.bytes_back < 1.2 * BIG_BYTES
    assert place.read_bytes() == served.big["rejected/part-90000.parquet"]


def test_another_call_goes_on_too(served: Served, tmp_path: Path) -> None:
    """What one attempt left when it gave up is kept, and the next one fetches the rest."""

    def broken(number: int, at: int, block: bytes) -> bytes | None:
        return None if at > 2_000_000 or number > 1 else block

    with wire(served.port, broken) as way, Client(f"http://127.0.0.1:{way.port}", patience_s=0.5) as client:
        with pytest.raises(UnreachableError):
            client.download(served.job, tmp_path, "rejected/part-90001*")
        first = way.bytes_back
    assert len(leftovers(tmp_path)) == 1
    assert not (tmp_path / "rejected/part-90001.parquet").exists()
    with wire(served.port) as way, served.client(way.port) as client:
        client.download(served.job, tmp_path, "rejected/part-90001*")
        assert first + way.bytes_back < 1.2 * BIG_BYTES
    assert (tmp_path / "rejected/part-90001.parquet").read_bytes() == served.big["rejected/part-90001.parquet"]
    assert leftovers(tmp_path) == []


def test_bytes_that_changed_on_the_way_are_found(served: Served, tmp_path: Path) -> None:
    """Once: fetched again from the beginning. Always: an error, and nothing is left that looks like the file."""

    def flip(block: bytes) -> bytes:
        return block[:-1] + bytes([block[-1] ^ 1])

    done = threading.Event()

    def once(_number: int, at: int, block: bytes) -> bytes:
        if at < 1_000_000 or done.is_set():
            return block
        done.set()
        return flip(block)

    with wire(served.port, once) as way, served.client(way.port) as client:
        (place,) = client.download(served.job, tmp_path, "rejected/part-90000*")
    assert place.read_bytes() == served.big["rejected/part-90000.parquet"]
    place.unlink()
    with (
        wire(served.port, lambda _n, at, b: flip(b) if at > 1_000_000 else b) as way,
        served.client(way.port) as client,
        pytest.raises(ChecksumMismatchError, match="SHA-256"),
    ):
        client.download(served.job, tmp_path, "rejected/part-90000*")
    assert not place.exists()
    assert leftovers(tmp_path) == []


def test_a_full_disk_is_said_and_what_came_is_kept(served: Served, tmp_path: Path) -> None:
    """With what to do; here by a limit for files of the process."""
    code = (
        "import sys; from qtune_service.client import Client; from qtune_service.errors import DiskFullError\n"
        "try: Client(sys.argv[1]).download(sys.argv[2], sys.argv[3], 'rejected/part-90000*')\n"
        "except DiskFullError as error: print(error)"
    )
    arguments = [sys.executable, "-c", code, f"http://127.0.0.1:{served.port}", served.job, str(tmp_path)]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # noqa: E731
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, preexec_fn=limit, timeout=60)
    assert "cannot write" in done.stdout
    assert "repeat the command. It resumes" in done.stdout
    (part,) = tmp_path.rglob("*.part")
    assert 0 < part.stat().st_size <= 1 << 20
    with wire(served.port) as way, served.client(way.port) as client:
        client.download(served.job, tmp_path, "rejected/part-90000*")
        assert way.bytes_back < 2.2 * (1 << 20)


def test_a_folder_that_cannot_be_written(served: Served, tmp_path: Path) -> None:
    """Is an error of storage that names the file."""
    (tmp_path / "rejected").write_text("a file")
    with served.client() as client, pytest.raises(StorageError, match=str(tmp_path)):
        client.download(served.job, tmp_path, "rejected/part-9*")


def test_files_come_in_parallel(tmp_path: Path) -> None:
    """As many at a time as asked for."""
    bodies = {f"{i}.bin": bytes([i]) * 1000 for i in range(8)}
    now, most, lock = [0], [0], threading.Lock()

    def answers(_method: str, path: str, _headers: object) -> Answer:
        if path.endswith("/files"):
            return Answer(body=listing(bodies))
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.1)
        with lock:
            now[0] -= 1
        return Answer(body=bodies[path.rpartition("/")[2]])

    with stand_in(answers) as stand, Client(stand.url) as client:
        client.download("x", tmp_path / "many", parallel=4)
        assert most == [4]
        client.download("x", tmp_path / "one", parallel=1)
    assert {path.name: path.read_bytes() for path in (tmp_path / "many").iterdir()} == bodies


def listing(bodies: dict[str, bytes]) -> bytes:
    """Return the list of files that a server gives."""
    files = [
        {"path": path, "size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest(), "rows": 0}
        for path, body in bodies.items()
    ]
    return json.dumps(files).encode()


def test_a_store_behind_a_redirect_gets_no_token(tmp_path: Path) -> None:
    """Another host is asked without the token, and a cut file is continued there by its range alone."""
    body = random.Random(9).randbytes(100_000)

    def store(_method: str, _path: str, headers: object) -> Answer:
        assert isinstance(headers, dict)
        if "range" not in headers:
            return Answer(200, {"Content-Length": str(len(body)), "ETag": '"other"'}, body[:40_000])
        start = int(headers["range"].removeprefix("bytes=").removesuffix("-"))
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return Answer(206, {"Content-Range": span, "ETag": '"other"'}, body[start:])

    with stand_in(store) as elsewhere:

        def server(_method: str, path: str, headers: object) -> Answer:
            assert isinstance(headers, dict)
            assert headers["authorization"] == "Bearer qtune_a_b"
            if path.endswith("/files"):
                return Answer(body=listing({"a.bin": body}))
            return Answer(307, {"Location": f"{elsewhere.url}/bucket/a.bin?X-Amz-Signature=secret"})

        with stand_in(server) as stand, Client(stand.url, "qtune_a_b") as client:
            (place,) = client.download("x", tmp_path)
    assert place.read_bytes() == body
    assert [headers.get("range") for _, _, headers in elsewhere.asked] == [None, "bytes=40000-"]
    for _, _, headers in elsewhere.asked:
        assert "authorization" not in headers
        assert "if-range" not in headers


def test_a_refusing_store_is_named_without_its_signature(tmp_path: Path) -> None:
    """A presigned URL is a secret."""
    with stand_in(lambda *_: Answer(403, body=b"<Error/>")) as elsewhere:

        def server(_method: str, path: str, _headers: object) -> Answer:
            if path.endswith("/files"):
                return Answer(body=listing({"a.bin": b"x"}))
            return Answer(302, {"Location": f"{elsewhere.url}/a?X-Amz-Signature=secret"})

        with stand_in(server) as stand, Client(stand.url) as client, pytest.raises(ApiError, match="403") as caught:
            client.download("x", tmp_path)
    assert elsewhere.url in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["../a", "/etc/cron.d/a", "a/../../b", "C:a", "a\\b", ""])
def test_a_server_cannot_write_elsewhere(tmp_path: Path, path: str) -> None:
    """A path that leaves the folder is refused before anything is fetched."""
    with stand_in(lambda *_: Answer(body=listing({path: b"x"}))) as stand, Client(stand.url) as client:
        with pytest.raises(ApiError, match="outside"):
            client.download("x", tmp_path / "in")
        assert len(stand.asked) == 1
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - the folder must not even be made


def test_a_file_that_ends_early_is_not_taken(tmp_path: Path) -> None:
    """A store that lost bytes: said, not waited for."""
    files = json.loads(listing({"a.bin": b"whole"}))

    def answers(_method: str, path: str, _headers: object) -> Answer:
        return Answer(body=json.dumps(files).encode() if path.endswith("/files") else b"who")

    with stand_in(answers) as stand, Client(stand.url) as client, pytest.raises(ChecksumMismatchError):
        client.download("x", tmp_path)


def test_downloads_stop_together(tmp_path: Path) -> None:
    """One file's error ends the others soon, though they would take long."""
    bodies = {f"{i}.bin": b"x" * 10 for i in range(40)}

    def answers(_method: str, path: str, _headers: object) -> Answer:
        if path.endswith("/files"):
            return Answer(body=listing(bodies))
        if path.endswith("/0.bin"):
            return Answer(404)
        time.sleep(0.5)
        return Answer(body=b"x" * 10)

    before = time.monotonic()
    with stand_in(answers) as stand, Client(stand.url) as client, pytest.raises(ApiError):
        client.download("x", tmp_path, parallel=2)
    assert time.monotonic() - before < 5
