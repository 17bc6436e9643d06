"""`qtune export --to hub --push`: the real client library against the small hub of the tests."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qtune_service.cli import app
from qtune_service.output.reader import FinishedOutput
from tests.finished_outputs import chats, finished_output
from tests.hub_environment import use_hub
from tests.hub_server import Fault, Hub, hub_server, new_name
from tests.jobs import environment, qtune, rows

TOKEN = "hf_owner"
LOAD = """
import json, sys
from datasets import load_dataset
print(json.dumps(load_dataset(sys.argv[1], split="train").to_list()))
"""


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """Run a hub for this module."""
    with hub_server() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Point this process to the hub, with a token that can write."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    return use_hub(server, monkeypatch, tmp_path / "home", TOKEN)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Return an output of a few conversations."""
    return finished_output(tmp_path_factory.mktemp("small"), chats(12), prune_by={"sample_keep_ratio": 0.5})


def push(small: FinishedOutput, *more: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(app, ["export", small.root, "--to", "hub", *more])


def test_a_new_dataset_is_private(hub: Hub, small: FinishedOutput, tmp_path: Path) -> None:
    """One commit with data and card, without a folder. The URL is printed, and `load_dataset` reads the kept rows."""
    name = new_name()
    done = push(small, "--push", name, "--commit-message", "First half", "--license", "mit")
    assert done.exit_code == 0, done.output
    made = hub.repositories[name]
    files = made.commits[made.branches["main"]]
    assert made.private
    assert made.messages == ["Add files", "First half"]
    assert sorted(files) == [".gitattributes", "README.md", *sorted(path for path in files if path.startswith("data/"))]
    assert f"{hub.url}/datasets/{name} (private), commit {made.branches['main'][:12]}" in done.stdout
    assert f'load_dataset("{name}", split="train")' in done.stdout
    assert f'load_dataset("{name}", split="train")' in files["README.md"].decode()
    assert "hf upload" not in done.stdout
    command = [sys.executable, "-c", LOAD, name]
    env = environment(hub.env(tmp_path / "load", TOKEN))
    loaded = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    expected = rows(Path(small.root) / "pruned")
    found = json.loads(loaded.stdout)
    assert [row["input_ids"] for row in found] == [row["input_ids"] for row in expected]
    assert [row["qtune"]["sample_id"] for row in found] == [row["qtune"]["sample_id"] for row in expected]
    assert TOKEN not in done.output


def test_a_public_dataset_and_a_folder(hub: Hub, small: FinishedOutput, tmp_path: Path) -> None:
    """`--public` makes a new dataset public. The folder, where one is named, has the same files."""
    name = new_name()
    done = push(small, str(tmp_path / "out"), "--push", name, "--public")
    assert done.exit_code == 0, done.output
    made = hub.repositories[name]
    assert not made.private
    assert "(public)" in done.stdout
    on_disk = {
        path.relative_to(tmp_path / "out").as_posix(): path.read_bytes() for path in (tmp_path / "out").rglob("*.*")
    }
    assert {
        path: body for path, body in made.commits[made.branches["main"]].items() if path != ".gitattributes"
    } == on_disk


def test_an_earlier_export_is_replaced_only_when_asked(hub: Hub, small: FinishedOutput) -> None:
    """`--overwrite` replaces all files of an earlier export by one commit. Nothing else is ever removed."""
    name = new_name()
    assert push(small, "--push", name, "--rows-per-file", "1").exit_code == 0
    before = dict(hub.repositories[name].commits)
    refused = push(small, "--push", name)
    assert (refused.exit_code, f"{name} exists and holds" in refused.stderr) == (2, True)
    assert "--overwrite" in refused.stderr
    assert hub.repositories[name].commits == before
    done = push(small, "--push", name, "--rows-per-file", "1000", "--overwrite", "--public")
    assert done.exit_code == 0, done.output
    made = hub.repositories[name]
    assert sorted(made.commits[made.branches["main"]]) == [
        ".gitattributes", "README.md", "data/train-00000-of-00001.parquet",
    ]  # fmt: skip
    assert len(made.commits) == len(before) + 1
    assert made.private
    assert "was private before and stays so" in done.stdout
    other = new_name()
    hub.add(other, {"README.md": "mine", "data/test.jsonl": "{}\n"}, private=True, readers={"org"})
    refused = push(small, "--push", other, "--overwrite")
    assert (refused.exit_code, "contains data/test.jsonl, which is not a file of an export" in refused.stderr) == (
        2,
        True,
    )


def test_a_public_dataset_is_not_written_to_silently(hub: Hub, small: FinishedOutput) -> None:
    """Data that are to be private by default do not end in a dataset that is public already."""
    name = new_name()
    hub.add(name, {".gitattributes": ""})
    refused = push(small, "--push", name)
    assert (refused.exit_code, f"the dataset {name} is public" in refused.stderr) == (2, True)
    assert push(small, "--push", name, "--public").exit_code == 0


def test_refusals_come_before_the_export(
    hub: Hub, small: FinishedOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No token, a wrong one, one that only reads, another's organization and wrong options: each has its sentence."""
    folder, name = tmp_path / "never", new_name()
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    refused = push(small, str(folder), "--push", name)
    assert (refused.exit_code, "the token can only read" in refused.stderr) == (4, True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = push(small, str(folder), "--push", name)
    assert (refused.exit_code, "does not accept the token" in refused.stderr) == (4, True)
    assert "hf_wrong" not in refused.output
    monkeypatch.delenv("HF_TOKEN")
    refused = push(small, str(folder), "--push", name)
    assert (refused.exit_code, "there is no token" in refused.stderr) == (4, True)
    assert "hf auth login" in refused.stderr
    for arguments, words in (
        (["--push", "name"], "not the name of a dataset"),
        (["--push", "org/name@v1"], "not the name of a dataset"),
        (["--public"], "--public needs --push"),
        (["--commit-message", "x"], "--commit-message needs --push"),
    ):
        refused = push(small, str(folder), *arguments)
        assert (refused.exit_code, words in refused.stderr) == (2, True), refused.stderr
    refused = push(small)
    assert (refused.exit_code, "no folder given" in refused.stderr) == (2, True)
    refused = CliRunner().invoke(app, ["export", small.root, str(folder), "--to", "trl", "--push", name])
    assert (refused.exit_code, "--push applies to --to hub only" in refused.stderr) == (2, True)
    refused = push(small, "s3://bucket/x", "--push", name)
    assert (refused.exit_code, "is not on this machine" in refused.stderr) == (2, True)
    assert not folder.exists()


def test_another_organization_is_refused(hub: Hub, small: FinishedOutput) -> None:
    """The hub decides who may create a dataset."""
    refused = push(small, "--push", "somebody/else")
    assert (refused.exit_code, "the token has no right to push to it" in refused.stderr) == (4, True)


def test_a_card_that_the_hub_refuses(hub: Hub, small: FinishedOutput) -> None:
    """A license that the hub does not know ends before the data is sent."""
    name = new_name()
    hub.invalid_licenses.add("my-own")
    refused = push(small, "--push", name, "--license", "my-own")
    assert (refused.exit_code, "the hub does not accept the card" in refused.stderr) == (3, True)
    assert "--license" in refused.stderr
    assert push(small, "--push", name, "--license", "mit").exit_code == 0, "an empty dataset can be pushed to"


def test_large_files_go_by_xet(hub: Hub, small: FinishedOutput, tmp_path: Path) -> None:
    """Where hf_xet is installed, it sends the data to its own storage; the commit names the same content."""
    pytest.importorskip("hf_xet")
    name, folder = new_name(), tmp_path / "out"
    assert push(small, str(folder), "--push", new_name()).exit_code == 0
    for path in folder.rglob("*.parquet"):
        hub.uploads[hashlib.sha256(path.read_bytes()).hexdigest()] = path.read_bytes()
    hub.xet_url = f"local://{tmp_path}/cas"
    env = {**hub.env(tmp_path / "home", TOKEN), "HF_HUB_DISABLE_XET": "0"}
    done = qtune("export", small.root, "--to", "hub", "--push", name, env=env)
    assert done.returncode == 0, done.stderr
    assert any(path.is_file() and "xorbs" in path.parts for path in (tmp_path / "cas").rglob("*"))
    made = hub.repositories[name]
    sent = {path: body for path, body in made.commits[made.branches["main"]].items() if path.startswith("data/")}
    assert sent == {f"data/{path.name}": path.read_bytes() for path in folder.rglob("*.parquet")}
    hub.xet_url = "http://127.0.0.1:9"
    limits = {"HF_XET_CLIENT_RETRY_MAX_ATTEMPTS": "0", "HF_XET_CLIENT_RETRY_MAX_DURATION": "1s"}
    failed = qtune("export", small.root, "--to", "hub", "--push", new_name(), env={**env, **limits})
    assert (failed.returncode, "sending to the storage of the hub failed" in failed.stderr) == (4, True), failed.stderr


def test_a_busy_hub_is_asked_again(hub: Hub, small: FinishedOutput) -> None:
    """429 and 503 at any step are repeated, and give one commit."""
    name = new_name()
    hub.faults += [
        Fault("/api/whoami", 429, {"Retry-After": "0"}),
        Fault("/api/repos/create", 503),
        Fault("/preupload/", 503),
        Fault("/commit/", 503),
    ]
    done = push(small, "--push", name)
    assert done.exit_code == 0, done.output
    assert hub.repositories[name].messages == ["Add files", "Add data pruned by qtune-service"]
