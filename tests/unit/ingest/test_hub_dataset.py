"""The files of a dataset of the hub: the same ones as the installed `datasets` library selects, at a fixed commit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qtune_service.config import InputSpec
from qtune_service.errors import DataError, SpecError
from qtune_service.ingest.discovery import SourceFile, discover
from qtune_service.ingest.hub_dataset import pin, pinned
from qtune_service.ingest.reader import first_records
from tests.hub_environment import use_hub
from tests.hub_server import Fault, Hub, hub_server, new_name
from tests.jobs import REPO, environment
from tests.unit.ingest.hub_layouts import LAYOUTS, ROW, card, rows

CASES = [(layout, config) for layout, made in LAYOUTS.items() for config in made.configs]


@pytest.fixture(scope="module")
def server() -> Iterator[Hub]:
    """Run a hub for this module."""
    with hub_server() as hub:
        yield hub


@pytest.fixture
def hub(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Point this process to the hub, without a token."""
    return use_hub(server, monkeypatch, tmp_path)


def read(path: str, **fields: Any) -> list[str]:
    """Return the paths in the repository that an input reads."""
    spec, _ = pin(InputSpec(paths=(path,), **fields))
    return [uri.partition("@")[2].partition("/")[2] for uri in spec.paths]


def found(path: str, split: str | None = None) -> tuple[SourceFile, ...]:
    """Return the files that a job reads."""
    spec = pinned(InputSpec(paths=(path,), split=split))
    return discover(spec.paths, spec.split)


# --- compared with the library


@pytest.fixture(scope="module")
def theirs(server: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str | None], Any]:
    """Return the files by split that the library selects, or its error, for each layout and configuration."""
    pytest.importorskip("datasets")
    names = {layout: new_name() for layout in LAYOUTS}
    for layout, name in names.items():
        server.add(name, LAYOUTS[layout].files)
    home = tmp_path_factory.mktemp("home")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.ingest.hub_layouts"],
        input=json.dumps([(names[layout], config) for layout, config in CASES]),
        capture_output=True,
        text=True,
        check=False,
        cwd=REPO,
        env=environment({**server.env(home), "PYTHONPATH": str(REPO)}),
    )
    assert done.returncode == 0, done.stderr
    found = dict(zip(CASES, json.loads(done.stdout), strict=True))
    return {(layout, config): (names[layout], of) for (layout, config), of in found.items()}


@pytest.mark.parametrize(("layout", "config"), CASES, ids=[f"{layout}-{config}" for layout, config in CASES])
def test_files_are_those_of_the_datasets_library(
    hub: Hub, theirs: dict[tuple[str, str | None], Any], layout: str, config: str | None
) -> None:
    """Each split has the same files. Where the library raises, so does this package."""
    name, expected = theirs[layout, config]
    if isinstance(expected, str):
        with pytest.raises(DataError):
            read(f"hf://datasets/{name}", config=config, split="train")
        return
    root = f"hf://datasets/{name}@{hub.repositories[name].branches['main']}/"
    assert expected
    for split, files in expected.items():
        assert [root + path for path in read(f"hf://datasets/{name}", config=config, split=split)] == files
    if len(expected) == 1:
        assert read(f"hf://datasets/{name}", config=config) == read(f"hf://datasets/{name}", config=config, split=split)
    else:
        with pytest.raises(DataError, match="several splits: " + ", ".join(expected)):
            read(f"hf://datasets/{name}", config=config)


# --- choices


def test_what_there_is_to_choose_is_listed(hub: Hub) -> None:
    """Errors list configurations and splits, and name the flags."""
    name = new_name()
    yaml = "configs:\n- {config_name: a, data_files: a/*}\n- {config_name: b, data_files: [{split: x, path: b/*}]}"
    hub.add(name, {"README.md": card(yaml), **rows("a/1.jsonl", "b/1.jsonl")})
    with pytest.raises(DataError, match="several configurations and no default: a, b") as caught:
        read(f"hf://datasets/{name}")
    assert "--config" in caught.value.hint
    with pytest.raises(DataError, match="has no configuration c") as caught:
        read(f"hf://datasets/{name}", config="c")
    assert "a, b" in caught.value.hint
    with pytest.raises(DataError, match=r"\(configuration b\) has no split train") as caught:
        read(f"hf://datasets/{name}", config="b", split="train")
    assert "Its splits: x" in caught.value.hint
    other = new_name()
    hub.add(other, rows("train.jsonl", "test.jsonl"))
    with pytest.raises(DataError, match="several splits: train, test") as caught:
        read(f"hf://datasets/{other}")
    assert "--split" in caught.value.hint


def test_a_path_selects_files_itself(hub: Hub) -> None:
    """A file, a folder or a glob behind the name is read whole, or divided by --split. A revision may be named."""
    name = new_name()
    made = hub.add(name, rows("d/train-1.jsonl", "d/test-1.jsonl", "e/x.jsonl", "d/sub/train.jsonl"))
    made.tags["v1"] = made.branches["main"]
    made.branches["a/b"] = made.branches["main"]
    at = f"hf://datasets/{name}@{made.branches['main']}"

    def files(path: str, split: str | None = None) -> list[str]:
        return [file.uri.removeprefix(f"{at}/") for file in found(path, split)]

    assert pin(InputSpec(paths=(f"hf://datasets/{name}/e/x.jsonl",)))[0].paths == (f"{at}/e/x.jsonl",)
    assert read(f"hf://datasets/{name}@v1/d/train-1.jsonl") == ["d/train-1.jsonl"]
    assert read(f"hf://datasets/{name}@a%2Fb/d/train-1.jsonl", split="train") == ["d/train-1.jsonl"]
    assert files(f"hf://datasets/{name}/d", "train") == ["d/sub/train.jsonl", "d/train-1.jsonl"]
    assert read(f"hf://datasets/{name}/d/*.jsonl", split="test") == ["d/test-1.jsonl"]

    assert files(f"hf://datasets/{name}/d/") == ["d/sub/train.jsonl", "d/test-1.jsonl", "d/train-1.jsonl"]
    assert files(f"hf://datasets/{name}/**/train*") == ["d/sub/train.jsonl", "d/train-1.jsonl"]
    with pytest.raises(SpecError, match="names files of a dataset"):
        read(f"hf://datasets/{name}/d", config="default")
    with pytest.raises(DataError, match="has no split 'dev'"):
        found(f"hf://datasets/{name}/d", "dev")
    with pytest.raises(DataError, match="has no split test"):
        read(f"hf://datasets/{name}/**/train*", split="test")


def test_saved_datasets(hub: Hub, tmp_path: Path) -> None:
    """A repository with folders of `save_to_disk` is read by its own description: splits have any name."""
    datasets = pytest.importorskip("datasets")
    parts = {split: datasets.Dataset.from_list([{"prompt": split, "completion": "b"}]) for split in ("sft", "held")}
    datasets.DatasetDict(parts).save_to_disk(str(tmp_path / "saved"))
    saved = tmp_path / "saved"
    name = new_name()
    hub.add(name, {path.relative_to(saved).as_posix(): path.read_bytes() for path in saved.rglob("*.*")})
    with pytest.raises(DataError, match=r"has several splits: .*sft"):
        found(f"hf://datasets/{name}")
    (file,) = found(f"hf://datasets/{name}", "sft")
    assert (file.kind, file.uri.rpartition("@")[2][41:]) == ("arrow", "sft/data-00000-of-00001.arrow")
    records = first_records(pinned(InputSpec(paths=(f"hf://datasets/{name}",), split="sft")), 5)
    assert [record.record for record in records] == [{"prompt": "sft", "completion": "b"}]


def test_a_missing_path_names_what_is_there(hub: Hub) -> None:
    """A wrong path or glob lists the files and folders of the repository, and shows the URI that the user gave."""
    name = new_name()
    hub.add(name, rows("data/a.jsonl", "b.jsonl"))
    for path, words in (("nope.jsonl", "there is no nope.jsonl in"), ("*.csv", "matches *.csv")):
        with pytest.raises(DataError) as caught:
            read(f"hf://datasets/{name}/{path}")
        assert words in caught.value.message
        assert f"hf://datasets/{name}" in caught.value.message
        assert "@" not in caught.value.message
        assert caught.value.hint == "It holds data/, b.jsonl."


@pytest.mark.parametrize(
    "path", ["https://example.org/x.jsonl", "/etc/passwd", "../x.jsonl", "hf://datasets/org/other/x"]
)
def test_a_card_names_files_of_its_repository_only(hub: Hub, path: str) -> None:
    """The card of a dataset cannot make this machine read its own files, other datasets, or other servers."""
    name = new_name()
    hub.add(name, {"README.md": card(f"configs:\n- config_name: d\n  data_files: '{path}'"), **rows("a.jsonl")})
    with pytest.raises(DataError, match="which is not in the repository"):
        read(f"hf://datasets/{name}")


@pytest.mark.parametrize(
    "yaml",
    ["configs: [", "configs: 3", "configs:\n- 3", "configs:\n- {config_name: a, data_files: 3}",
     "configs:\n- {config_name: a, data_files: [{split: a}]}", "configs:\n- {data_files: a}",
     "configs:\n- {config_name: a, data_files: [{split: a, path: x}, {split: a, path: y}]}", "- 1"],
)  # fmt: skip
def test_a_wrong_card_is_an_error(hub: Hub, yaml: str) -> None:
    """A card that cannot be understood is named, with the way around it."""
    name = new_name()
    hub.add(name, {"README.md": card(yaml), **rows("a.jsonl")})
    with pytest.raises(DataError, match="cannot use the card") as caught:
        read(f"hf://datasets/{name}")
    assert caught.value.hint == f"Name files in place of the card: hf://datasets/{name}/PATH."
    assert read(f"hf://datasets/{name}/a.jsonl") == ["a.jsonl"]


def test_kinds_that_a_card_mixes_are_an_error(hub: Hub) -> None:
    """The library fails on them. Reading one kind only would leave out records silently."""
    name = new_name()
    yaml = "configs:\n- config_name: d\n  data_files: data/*"
    hub.add(name, {"README.md": card(yaml), "data/a.jsonl": ROW, "data/b.parquet": ROW})
    with pytest.raises(DataError, match="mixes files of several kinds: json, parquet"):
        read(f"hf://datasets/{name}")


# --- commits


def test_a_commit_is_kept(hub: Hub) -> None:
    """The commit of an earlier call is read although the branch has moved on, and needs no request for the branch."""
    name = new_name()
    made = hub.add(name, rows("a.jsonl"))
    first, commits = pin(InputSpec(paths=(f"hf://datasets/{name}",)))
    assert commits == {f"hf://datasets/{name}": made.branches["main"]}
    made.commit({"b.jsonl": ROW.encode()})
    hub.requests.clear()
    assert pin(InputSpec(paths=(f"hf://datasets/{name}",)), commits) == (first, commits)
    assert not hub.paths(r"/api/datasets/[^/]+/[^/?]+(\?|$|/revision)")
    assert read(f"hf://datasets/{name}") == ["b.jsonl"]


def test_a_changed_plan_names_no_other_revision(hub: Hub) -> None:
    """Commits come from the plan of an output, which other users may have written."""
    with pytest.raises(DataError, match="no commit"):
        pin(InputSpec(paths=("hf://datasets/org/x",)), {"hf://datasets/org/x": "refs/pr/1"})


def test_many_paths_take_one_listing(hub: Hub) -> None:
    """A job file with hundreds of files of a dataset does not send a request for each."""
    name, files = new_name(), [f"part/{number:03}.jsonl" for number in range(100)]
    hub.add(name, rows(*files))
    paths = tuple(f"hf://datasets/{name}/{file}" for file in files)
    spec = pinned(InputSpec(paths=paths))
    assert len(hub.requests) <= 3
    assert len(discover(spec.paths, spec.split)) == 100
    assert not hub.paths("paths-info")


def test_a_card_with_a_byte_order_mark(hub: Hub) -> None:
    """Editors on Windows write one. The card is read, where the library ignores it."""
    name = new_name()
    text = card("configs:\n- {config_name: d, data_files: a.jsonl}")
    hub.add(name, {"README.md": f"\ufeff{text}".replace("\n", "\r\n"), **rows("a.jsonl", "b.jsonl"), "c.jsonl": ""})
    assert read(f"hf://datasets/{name}") == ["a.jsonl"]
    assert len(found(f"hf://datasets/{name}/*.jsonl")) == 3, "one of them is empty"


def test_two_revisions_of_a_dataset(hub: Hub) -> None:
    """Each revision has its own commit; local paths stay as they are."""
    name = new_name()
    made = hub.add(name, rows("a.jsonl"))
    old = made.branches["main"]
    new = made.commit({"a.jsonl": b"{}\n"})
    spec, commits = pin(InputSpec(paths=("x.jsonl", f"hf://datasets/{name}@{old}", f"hf://datasets/{name}")))
    assert spec.paths == ("x.jsonl", f"hf://datasets/{name}@{old}/a.jsonl", f"hf://datasets/{name}@{new}/a.jsonl")
    assert sorted(commits.values()) == sorted([old, new])


def test_a_busy_hub_loses_no_file(hub: Hub) -> None:
    """A listing is repeated after 429 and 503. A failed listing is never taken for an empty one."""
    name = new_name()
    hub.add(name, rows("d/a.jsonl", "d/b.jsonl"))
    hub.faults += [
        Fault("/api/datasets/.*/tree/", 429, {"Retry-After": "0"}),
        Fault(r"^/api/datasets/[^/]+/[^/]+$", 503),
        Fault("/paths-info/", 429),
    ]
    assert read(f"hf://datasets/{name}") == ["d/a.jsonl", "d/b.jsonl"]
    listed = found(f"hf://datasets/{name}/d")
    assert [file.uri.rpartition("/")[2] for file in listed] == ["a.jsonl", "b.jsonl"]


def test_a_configuration_needs_a_dataset_of_the_hub() -> None:
    """`config` with local files only is refused when the job is described."""
    with pytest.raises(ValueError, match="`config` needs a dataset of the hub"):
        InputSpec(paths=("a.jsonl",), config="x")
