"""Tests of folders as people have them: metadata, caches, LFS pointers, saved data sets and splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from qtune_service.config import InputSpec
from qtune_service.errors import DataError
from qtune_service.ingest.dataset_folders import METADATA
from qtune_service.ingest.discovery import discover, notices
from qtune_service.ingest.reader import first_records
from qtune_service.storage import file_io
from tests.s3 import S3Endpoint
from tests.unit.ingest.planning import columns_of, plan_of, records_of

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
ROW: dict[str, Any] = {"messages": TURNS}
LINE = json.dumps(ROW) + "\n"


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    """Write files by their relative paths."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def found(path: Path | str, split: str | None = None) -> list[str]:
    """Return the files that a job reads, relative to the path."""
    return [str(Path(file.name).relative_to(path)) for file in discover([str(path)], split)]


LLAMA_FACTORY = {"mine": {"file_name": "a.jsonl", "columns": {"messages": "messages"}}, "theirs": {"hf_hub_url": "x/y"}}
INFO = {"citation": "", "description": "", "features": {"text": {"dtype": "string"}}, "splits": {"train": {}}}
STATE = {"log_history": [{"loss": 1.5, "step": 10}], "global_step": 10}
TOKENIZER = {"added_tokens": [{"id": 0, "content": "<s>", "special": True}], "model": {"vocab": {"a": 0}}}


def test_metadata_caches_and_other_files_are_left_out(tmp_path: Path) -> None:
    """Files that describe data, models or repositories are no data, whatever their form; data beside them is read."""
    write(
        tmp_path,
        {
            "b.jsonl": LINE,
            "a.json": json.dumps([ROW]),
            "sub/c.jsonl": LINE * 2,
            "dataset_info.json": json.dumps(LLAMA_FACTORY, indent=2),
            "dataset_infos.json": json.dumps({"default": INFO}),
            "sub/dataset_info.json": json.dumps(INFO),
            "state.json": json.dumps({"version": 3}),
            "checkpoint-500/trainer_state.json": json.dumps(STATE, indent=2),
            "checkpoint-500/config.json": json.dumps({"architectures": ["X"], "text_config": {}}),
            "checkpoint-500/tokenizer.json": json.dumps(TOKENIZER),
            "checkpoint-500/model.safetensors": b"\x10" + bytes(7) + b'{"a": 1}',
            "cache-0123456789abcdef.arrow": b"",
            "cache-0123456789abcdef_00001_of_00002.arrow": b"",
            ".git/config.json": "{}",
            ".gitattributes": "*.parquet filter=lfs",
            ".cache/huggingface/download/b.jsonl.metadata": "x",
            "README.md": "---\nconfigs: []\n---",
            "LICENSE": "MIT",
            "b.jsonl.lock": "",
            "run.py": "print()",
            "__MACOSX/._b.jsonl": b"\0",
            "_SUCCESS": "",
        },
    )
    assert found(tmp_path) == ["a.json", "b.jsonl", "sub/c.jsonl"]
    assert records_of(plan_of(tmp_path / "w", tmp_path)) == [ROW] * 4
    (said,) = notices([str(tmp_path)])
    assert said.startswith(f"Left out of {tmp_path}, as they hold no records: cache-0123456789abcdef.arrow, ")


@pytest.mark.parametrize("name", ["dataset_info.json", "state.json", "metadata.json"])
@pytest.mark.parametrize(
    "content",
    [
        json.dumps([ROW]),
        LINE * 2,
        json.dumps(ROW),
        json.dumps({"messages": {"0": TURNS}}),
        json.dumps({"prompt": ["a"], "completion": ["b"]}),
        json.dumps({"data": [ROW]}),
        json.dumps(TURNS),
    ],
)
def test_data_with_the_name_of_metadata_is_read(tmp_path: Path, name: str, content: str) -> None:
    """Its content decides."""
    assert name in METADATA
    write(tmp_path, {name: content})
    assert found(tmp_path) == [name]
    assert first_records(InputSpec(paths=(str(tmp_path),)), 5)
    assert notices([str(tmp_path)]) == []


def test_a_file_that_the_user_names_is_judged_by_its_content(tmp_path: Path) -> None:
    """Metadata that is named itself is not left out without a word."""
    write(tmp_path, {"dataset_info.json": json.dumps(INFO), "a.jsonl": LINE})
    assert len(discover([str(tmp_path / "dataset_info.json")])) == 1
    with pytest.raises(DataError, match="cannot detect the format"):
        first_records(InputSpec(paths=(str(tmp_path / "dataset_info.json"),)), 5)


def test_a_folder_of_nothing_but_metadata_is_an_error(tmp_path: Path) -> None:
    """With the files that are there."""
    write(tmp_path, {"dataset_info.json": json.dumps(INFO), "README.md": "x"})
    with pytest.raises(DataError, match=r"no data files in .*: it holds only README.md, dataset_info.json"):
        discover([str(tmp_path)])


def test_pointers_are_an_error_and_not_left_out(tmp_path: Path) -> None:
    """Data that was not fetched is missing: the pointer is named, with what to do."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    write(tmp_path, {"data/train-00000-of-00001.parquet": pointer, "a.jsonl": LINE})
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet: it is a Git LFS pointer") as caught:
        discover([str(tmp_path)])
    assert "git lfs pull" in caught.value.hint


# --- splits by name


def clone(folder: Path) -> Path:
    """Write a clone of a data set of the hub, with a train and a test split."""
    (folder / "data").mkdir()
    for split, count in (("train", 3), ("test", 2)):
        rows = [ROW | {"split": split}] * count
        pq.write_table(pa.Table.from_pylist(rows), folder / "data" / f"{split}-00000-of-00001.parquet")
    infos = json.dumps({"default": {"features": {}}})
    return write(folder, {"README.md": "---\n---", ".gitattributes": "x", "dataset_infos.json": infos})


def test_a_clone_is_read_whole_with_a_notice_or_by_split(tmp_path: Path) -> None:
    """Splits are never mixed without a word; with a split, only its files are read."""
    clone(tmp_path)
    assert len(records_of(plan_of(tmp_path / "w", tmp_path))) == 5
    assert notices([str(tmp_path)])[0] == (
        f"All splits of {tmp_path} are read: train, test. To read one, give `split`, such as train."
    )
    for split, count in (("train", 3), ("test", 2)):
        assert found(tmp_path, split) == [f"data/{split}-00000-of-00001.parquet"]
        rows = [one.record for one in first_records(InputSpec(paths=(str(tmp_path),), split=split), 50)]
        assert rows == [ROW | {"split": split}] * count
        assert notices([str(tmp_path)], split) == [
            f"Left out of {tmp_path}, as they hold no records: dataset_infos.json."
        ]
    with pytest.raises(DataError, match="has no split 'dev'") as caught:
        discover([str(tmp_path)], "dev")
    assert "Its splits: train, test." in caught.value.hint


def test_files_without_a_split_are_reported(tmp_path: Path) -> None:
    """Where others have one, they belong to none."""
    write(tmp_path, {"train.jsonl": LINE, "other.jsonl": LINE})
    assert found(tmp_path) == ["other.jsonl", "train.jsonl"]
    assert found(tmp_path, "train") == ["train.jsonl"]
    assert notices([str(tmp_path)], "train") == [f"Left out of {tmp_path}, as they belong to no split: other.jsonl."]


def test_archives_beside_data_are_reported(tmp_path: Path) -> None:
    """They may hold records, which nobody reads."""
    write(tmp_path, {"a.jsonl": LINE, "b.zip": "x", "c.xlsx": "x", "d.tar.gz": "x", "notes.txt": "x"})
    assert found(tmp_path) == ["a.jsonl"]
    assert notices([str(tmp_path)]) == [
        f"Not read in {tmp_path}, as files of their kind are not supported: b.zip, c.xlsx, d.tar.gz."
    ]


def test_named_files_and_patterns_have_splits_too(tmp_path: Path) -> None:
    """A named file of another split is an error; a pattern is divided; a file without a keyword is of train."""
    names = ("train.jsonl", "dev.jsonl", "x/test/a.jsonl", "x/train/a.jsonl", "b.jsonl")
    write(tmp_path, dict.fromkeys(names, LINE))
    assert len(discover([str(tmp_path / "b.jsonl"), str(tmp_path / "train.jsonl")], "train")) == 2
    with pytest.raises(DataError, match=r"dev.jsonl has no split 'train'") as caught:
        discover([str(tmp_path / "dev.jsonl")], "train")
    assert "Its splits: validation" in caught.value.hint
    (file,) = discover([str(tmp_path / "x/*/a.jsonl")], "test")
    assert file.name == str(tmp_path / "x/test/a.jsonl")


# --- save_to_disk


def save(folder: Path, **splits: int) -> Path:
    """Save a data set, or one with splits, by the library."""
    datasets = pytest.importorskip("datasets")
    made = {
        split: datasets.Dataset.from_list([ROW | {"n": i, "split": split} for i in range(count)])
        for split, count in splits.items()
    }
    if list(splits) == ["only"]:
        made["only"].save_to_disk(str(folder), num_shards=3)
    else:
        datasets.DatasetDict(made).save_to_disk(str(folder), num_shards=dict.fromkeys(splits, 2))
    return folder


def test_a_saved_data_set_is_read_in_its_order(tmp_path: Path) -> None:
    """The files that state.json lists, in its order, and no caches beside them."""
    folder = save(tmp_path / "saved", only=100)
    expected = [ROW | {"n": i, "split": "only"} for i in range(100)]
    assert columns_of(plan_of(tmp_path / "w", folder)) == expected
    (folder / "cache-0123456789abcdef.arrow").write_bytes((folder / "data-00000-of-00003.arrow").read_bytes())
    state = json.loads((folder / "state.json").read_text())
    state["_data_files"].reverse()
    (folder / "state.json").write_text(json.dumps(state))
    assert found(folder) == [f"data-0000{i}-of-00003.arrow" for i in (2, 1, 0)]
    assert notices([str(folder)]) == [f"Left out of {folder}, as they hold no records: cache-0123456789abcdef.arrow."]
    assert found(folder, "train") == found(folder)
    with pytest.raises(DataError, match="has no split 'test'"):
        discover([str(folder)], "test")
    (folder / "data-00001-of-00003.arrow").unlink()
    with pytest.raises(DataError, match=r"is incomplete: state.json lists data-00001-of-00003.arrow"):
        discover([str(folder)])


def test_splits_of_a_data_set_dict_need_a_choice(tmp_path: Path) -> None:
    """Several splits are an error that lists them; one is read alone, also in its own folder."""
    folder = save(tmp_path / "dict", train=5, test=3)
    with pytest.raises(DataError, match="has several splits: train, test") as caught:
        discover([str(folder)])
    assert "--split train" in caught.value.hint
    for split, count in (("train", 5), ("test", 3)):
        expected = [ROW | {"n": i, "split": split} for i in range(count)]
        assert columns_of(plan_of(tmp_path / split, folder, split=split)) == expected
        assert [one.record for one in first_records(InputSpec(paths=(str(folder),), split=split), 50)] == expected
        assert columns_of(plan_of(tmp_path / f"{split}-2", folder / split)) == expected
    with pytest.raises(DataError, match="has no split 'dev'"):
        discover([str(folder)], "dev")
    alone = save(tmp_path / "alone", train=2)
    assert len(records_of(plan_of(tmp_path / "w", alone))) == 2


def test_a_folder_of_saved_data_sets(tmp_path: Path) -> None:
    """Each is read in its own order, beside plain files."""
    save(tmp_path / "a/saved", only=4)
    save(tmp_path / "b", train=2, test=3)
    write(tmp_path, {"c.jsonl": LINE})
    names = found(tmp_path, "train")
    assert [name.split("/")[0] for name in names] == ["a", "a", "a", "b", "b", "c.jsonl"]
    assert all(not name.startswith("b/test") for name in names)
    assert len(records_of(plan_of(tmp_path / "w", tmp_path, split="train"))) == 4 + 2 + 1


def test_folders_of_an_object_store(s3: S3Endpoint) -> None:
    """Metadata, saved data sets and splits are found by the same rules on S3."""
    sink = pa.BufferOutputStream()
    table = pa.Table.from_pylist([ROW] * 3)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    data = sink.getvalue().to_pybytes()
    for split in ("train", "test"):
        file_io.write_bytes(s3.uri(f"dict/{split}/data-00000-of-00001.arrow"), data)
        state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_split": split}
        file_io.write_bytes(s3.uri(f"dict/{split}/state.json"), json.dumps(state).encode())
    file_io.write_bytes(s3.uri("dict/dataset_dict.json"), json.dumps({"splits": ["train", "test"]}).encode())
    assert records_of(plan_of(s3.uri("dict-work"), s3.uri("dict"), split="test")) == [ROW] * 3
    with pytest.raises(DataError, match="has several splits: train, test"):
        discover([s3.uri("dict")])
    assert len(discover([s3.uri("dict/*/*.arrow")])) == 2


def test_the_folders_of_the_field_cases(tmp_path: Path, shared_dir: Path) -> None:
    """Folders that were refused as a whole."""
    cases = shared_dir / "field_cases" / "08-folder-with-metadata-json"
    if not cases.is_dir():
        pytest.skip(f"no {cases}")
    for name, count in (("hub_clone", 0), ("llamafactory_data", 1), ("save_to_disk", 2)):
        records = records_of(plan_of(tmp_path / name, cases / name))
        assert all(isinstance(record, dict) and "messages" in record for record in records)
        assert len(records) >= max(count, 1)
