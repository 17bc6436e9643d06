"""Reading datasets of the hub: the real client library against the small hub of the tests."""

from __future__ import annotations

import io
import logging
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qtune_service.errors import SpecError, StorageError
from qtune_service.storage import file_io
from qtune_service.storage.hub_uri import HubUri
from tests.hub_environment import use_hub
from tests.hub_server import Fault, Hub, hub_server, new_name

TOKEN = "hf_reader"


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """Run a hub for this module."""
    with hub_server() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Point this process to the hub, without a token."""
    return use_hub(server, monkeypatch, tmp_path)


def at_commit(hub: Hub, name: str, path: str) -> str:
    """Return the URI of a file at the commit of main."""
    return f"hf://datasets/{name}@{hub.repositories[name].branches['main']}/{path}"


def parquet(rows: int) -> bytes:
    """Return a Parquet file with row groups of 1,000 rows of 4 KB."""
    sink = io.BytesIO()
    texts = np.random.default_rng(0).bytes(rows * 4096)
    table = pa.table({"a": range(rows), "text": [texts[i * 4096 : (i + 1) * 4096] for i in range(rows)]})
    pq.write_table(table, sink, row_group_size=1000, compression="none")
    return sink.getvalue()


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("hf://datasets/org/name", HubUri("org/name")),
        ("hf://datasets/org/name/", HubUri("org/name")),
        ("hf://datasets/org/name@v1.0", HubUri("org/name", "v1.0")),
        ("hf://datasets/org/name@a%2Fb/data/x.jsonl", HubUri("org/name", "a/b", "data/x.jsonl")),
        ("hf://datasets/org/name@refs/pr/12/x.jsonl", HubUri("org/name", "refs/pr/12", "x.jsonl")),
        ("hf://datasets/org/name@refs/convert/parquet", HubUri("org/name", "refs/convert/parquet")),
        ("hf://datasets/org/name/a@b/*.jsonl", HubUri("org/name", None, "a@b/*.jsonl")),
        ("hf://datasets/org/name/with blank?.jsonl", HubUri("org/name", None, "with blank?.jsonl")),
    ],
)
def test_uris(text: str, parsed: HubUri) -> None:
    """A URI is parsed as the library parses it, and written back."""
    from huggingface_hub.utils._hf_uris import parse_hf_uri

    assert HubUri.parse(text) == parsed
    theirs = parse_hf_uri(text.rstrip("/"))
    assert (theirs.id, theirs.revision, theirs.path_in_repo) == (parsed.repository, parsed.revision, parsed.path)
    assert HubUri.parse(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hf://org/name", "a model of the hub, not a dataset"),
        ("hf://models/org/name", "a model of the hub"),
        ("hf://spaces/org/name", "a space of the hub"),
        ("hf://buckets/org/name/file", "a bucket of the hub"),
        ("hf://datasets/name", "not the name of a dataset"),
        ("hf://datasets/org/*", "not the name of a dataset"),
        ("hf://datasets/org/name@", "not the name of a dataset"),
        ("hf://datasets/org/name/../x", "not the name of a dataset"),
        ("hf://datasets/org/name/a//b", "not the name of a dataset"),
    ],
)
def test_other_kinds_are_refused(text: str, words: str) -> None:
    """One sentence says what the URI names, and the hint has the right form."""
    with pytest.raises(SpecError, match=words) as caught:
        file_io.stat(text)
    assert "hf://datasets/ORG/NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("url", "uri"),
    [
        ("https://huggingface.co/datasets/org/name", "hf://datasets/org/name."),
        ("https://hf.co/datasets/org/name/tree/main/data", "hf://datasets/org/name/data."),
        ("https://huggingface.co/datasets/org/name/blob/v1/a%20b.jsonl", "hf://datasets/org/name@v1/a b.jsonl."),
        (
            "https://huggingface.co/datasets/org/name/resolve/refs%2Fconvert%2Fparquet/x.parquet?download=true",
            "hf://datasets/org/name@refs/convert/parquet/x.parquet.",
        ),
    ],
)
def test_an_address_of_a_browser_is_named_as_such(url: str, uri: str) -> None:
    """The hint is the URI to use in place of a page."""
    with pytest.raises(StorageError, match="is a page of the hub, not data") as caught:
        file_io.stat(url)
    assert caught.value.hint == f"Read the dataset as {uri}"


def test_a_refusal_in_the_middle_of_a_file(hub: Hub) -> None:
    """Failures while Arrow reads row groups keep their sentence."""
    name = new_name()
    hub.add(name, {"a.parquet": parquet(3000)})

    def read() -> None:
        with file_io.open_parquet(at_commit(hub, name, "a.parquet")) as file:
            file.read_row_group(0)
            hub.faults.append(Fault("/resolve/", 403, times=99))
            file.read_row_group(2)

    with pytest.raises(StorageError, match=r"the token has no right to read it \(at random\)") as caught:
        read()
    assert "HF_TOKEN" in caught.value.hint


def test_a_small_and_a_large_file_are_read(hub: Hub) -> None:
    """Names are quoted, ranges are exact, and the version is the id of the content."""
    name, small, large = new_name(), "a b#ü%.jsonl", "data/x y.parquet"
    hub.add(name, {small: b"0123456789" * 1000, large: parquet(10)})
    uri = at_commit(hub, name, small)
    assert file_io.read_range(uri, 5, 12) == b"5678901"
    assert file_io.read_bytes(uri) == b"0123456789" * 1000
    found = file_io.stat(uri)
    assert found is not None
    assert (found.size_bytes, len(found.version)) == (10_000, 40)
    other = file_io.stat(at_commit(hub, name, large))
    assert other is not None
    assert len(other.version) == 64
    with file_io.open_parquet(at_commit(hub, name, large)) as file:
        assert file.read(["a"]).column("a").to_pylist() == list(range(10))
    assert file_io.stat(at_commit(hub, name, "nope")) is None
    assert not file_io.exists(at_commit(hub, name, "nope/nope"))
    assert file_io.is_folder(at_commit(hub, name, "data"))
    assert file_io.list_files(at_commit(hub, name, "data")) == [at_commit(hub, name, large)]
    assert file_io.glob(at_commit(hub, name, "**/*.parquet")) == [at_commit(hub, name, large)]


def test_a_footer_is_read_by_ranges(hub: Hub) -> None:
    """A footer and one column of one row group do not download a file of 41 MB."""
    name = new_name()
    body = parquet(10_000)
    hub.add(name, {"a.parquet": body})
    with file_io.open_parquet(at_commit(hub, name, "a.parquet")) as file:
        assert file.metadata.num_rows == 10_000
        assert file.read_row_group(7, ["a"]).column("a")[0].as_py() == 7000
    read = sum(request.num_bytes for request in hub.requests if request.server == "storage")
    assert 0 < read < len(body) / 10


def test_the_token_goes_to_the_hub_only(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A private dataset is read with HF_TOKEN. The storage that the hub redirects to does not get it, nor do logs."""
    caplog.set_level(logging.DEBUG)
    name = new_name()
    hub.add(name, {"a.parquet": parquet(3), "a.jsonl": "{}\n"}, private=True, readers={"reader"})
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert len(file_io.read_bytes(at_commit(hub, name, "a.parquet"))) > 3 * 4096
    assert {request.token for request in hub.requests if request.server == "hub"} == {TOKEN}
    assert {request.token for request in hub.requests if request.server == "storage"} == {None}
    ours = [record for record in caplog.records if record.name.startswith("qtune")]
    assert not any(TOKEN in record.getMessage() for record in ours)


def test_a_stored_login_is_used(hub: Hub, tmp_path: Path) -> None:
    """The file that `hf auth login` writes takes the place of HF_TOKEN."""
    (tmp_path / "token").write_text(TOKEN)
    name = new_name()
    hub.add(name, {"a.jsonl": "{}\n"}, private=True, readers={"reader"})
    assert file_io.read_bytes(at_commit(hub, name, "a.jsonl")) == b"{}\n"


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    """429 is repeated after the time of Retry-After, and 503 after an increasing pause: for metadata and for ranges."""
    name = new_name()
    hub.add(name, {"a.jsonl": "{}\n"})
    hub.faults += [
        Fault("/paths-info/", 429, {"Retry-After": "1"}),
        Fault("/resolve/", 429, {"Retry-After": "0"}),
        Fault("/paths-info/", 503),
    ]
    start_s = time.monotonic()
    assert file_io.read_bytes(at_commit(hub, name, "a.jsonl")) == b"{}\n"
    assert time.monotonic() - start_s > 2
    assert len(hub.paths("/paths-info/")) == 3
    assert len(hub.paths("/resolve/")) == 2


def test_the_end_of_a_rate_limit_is_waited_for() -> None:
    """The header RateLimit says when requests are allowed again."""
    from qtune_service.storage.hub_errors import _wait_of

    assert _wait_of({"RateLimit": '"api";r=0;t=55'}) == 56
    assert _wait_of({"RateLimit": '"api";r=10;t=55'}) is None
    assert _wait_of({"Retry-After": "7", "RateLimit": '"api";r=0;t=55'}) == 8
    assert _wait_of({"Retry-After": "100000"}) == 330
    assert _wait_of({}) is None


def failure(uri: str) -> str:
    """Return the message and hint of reading."""
    with pytest.raises(StorageError) as caught:
        file_io.read_bytes(uri)
    return f"{caught.value.message} | {caught.value.hint}"


def test_refusals_are_clear(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, private, gated, a wrong token and an outage each have their sentence, without the library's texts."""
    gated, private = new_name(), new_name()
    hub.add(gated, {"a.jsonl": "{}\n"}, gated=True)
    hub.add(private, {"a.jsonl": "{}\n"}, private=True)
    missing = f"hf://datasets/org/none@{'0' * 40}/a.jsonl"
    terms = f"Accept its terms at {hub.url}/datasets/{gated}"
    assert f"there is no dataset org/none at {hub.url}, or it is private" in failure(missing)
    assert "set HF_TOKEN" in failure(at_commit(hub, private, "a.jsonl"))
    found = failure(at_commit(hub, gated, "a.jsonl"))
    assert f"{gated} is gated" in found
    assert f"{terms}, then log in" in found
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "whether the account of your token can read it" in failure(at_commit(hub, private, "a.jsonl"))
    assert f"{terms}, then run" in failure(at_commit(hub, gated, "a.jsonl"))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    found = failure(at_commit(hub, gated, "a.jsonl"))
    assert "does not accept the token | Check HF_TOKEN" in found
    assert "hf_wrong" not in found


def test_a_missing_revision_names_those_that_exist(hub: Hub) -> None:
    """The hint lists branches and tags."""
    from qtune_service.storage.hub import find_commit

    name = new_name()
    made = hub.add(name, {"a.jsonl": "{}\n"})
    made.tags["v1.0"] = made.branches["main"]
    assert find_commit(HubUri(name, "v1.0")) == made.branches["main"]
    with pytest.raises(StorageError, match="has no revision v9") as caught:
        find_commit(HubUri(name, "v9"))
    assert "main, v1.0" in caught.value.hint


def test_an_outage_ends_with_an_error(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of attempts is limited, for responses of 5xx and for refused connections."""
    monkeypatch.setattr("qtune_service.storage.filesystems.ATTEMPTS", 2)
    name = new_name()
    hub.add(name, {"a.jsonl": "{}\n"})
    hub.faults.append(Fault("/paths-info/", 502, times=99))
    assert "the hub answered 502 | Run the same command again later" in failure(at_commit(hub, name, "a.jsonl"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "no answer from http://127.0.0.1:9 (ConnectError)" in failure(at_commit(hub, name, "a.jsonl"))


def test_offline_mode_is_respected(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE forbids requests, without attempts."""
    from huggingface_hub import close_session

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    close_session()
    assert "HF_HUB_OFFLINE forbids" in failure(f"hf://datasets/org/x@{'1' * 40}/a.jsonl")
    assert not hub.requests


@pytest.mark.parametrize("path", ["", "/out/x.json"])
def test_nothing_is_written_by_uri(hub: Hub, path: str) -> None:
    """An output on the hub is refused, with the command that pushes."""
    with pytest.raises(StorageError, match="datasets of the hub are only read") as caught:
        file_io.write_bytes(f"hf://datasets/org/x@{'1' * 40}{path}", b"{}")
    assert "--push ORG/NAME" in caught.value.hint


def test_pages_of_a_listing_are_followed(hub: Hub) -> None:
    """A folder with more files than a page has is listed whole."""
    name = new_name()
    hub.add(name, {f"part/{number:03}.jsonl": "{}\n" for number in range(25)})
    hub.page_size = 7
    try:
        assert len(file_io.list_files(at_commit(hub, name, "part"))) == 25
    finally:
        hub.page_size = 1000
    assert len(hub.paths("/tree/")) >= 4
