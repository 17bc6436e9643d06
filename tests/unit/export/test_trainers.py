"""Exports hold exactly the columns that trainers read, with the values that a plain reading of pruned/ gives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds
import pytest
from datasets import load_from_disk

from qtune_service.cli import compare_export
from qtune_service.cli.compare_export import To
from qtune_service.errors import DataError, OutputConflictError, SpecError, StorageError
from qtune_service.export.run import FORMATS, export
from qtune_service.export.writers import Options
from qtune_service.output.reader import FinishedOutput
from qtune_service.storage import file_io
from tests.finished_outputs import chats, finished_output
from tests.jobs import rows, table

Row = dict[str, Any]
ALL = [name for name in FORMATS if name != "analysis"]


def slime(row: Row) -> Row:
    """Cut a sample as slime's own SFT rollout does."""
    first = row["loss_mask"].index(1)
    return {
        "tokens": row["input_ids"],
        "response_length": len(row["input_ids"]) - first,
        "loss_mask": row["loss_mask"][first:],
    }


def same(*names: str) -> Callable[[Row], Row]:
    """Return a function that returns these columns as they are."""
    return lambda row: {name: row[name] for name in names}


EXPECTED: dict[str, Callable[[Row], Row]] = {
    "trl": same("input_ids", "labels", "assistant_masks"),
    "axolotl": same("input_ids", "attention_mask", "labels"),
    "torchtune": lambda row: {"tokens": row["input_ids"], "mask": [not trained for trained in row["loss_mask"]]},
    "verl": lambda row: (
        same("input_ids", "attention_mask")(row)
        | {"position_ids": list(range(len(row["input_ids"]))), "loss_mask": row["loss_mask"]}
    ),
    "skyrl": same("input_ids", "loss_mask"),
    "nemo-automodel": lambda row: {
        "input_ids": row["input_ids"][:-1],
        "labels": row["labels"][1:],
        "attention_mask": row["attention_mask"][1:],
    },
    "slime": slime,
    "parquet": dict,
}


@pytest.mark.parametrize("name", EXPECTED)
def test_columns_and_values_are_what_the_trainer_reads(name: str, out: Path, tmp_path: Path) -> None:
    """Every kept sample, in order, in the trainer's columns and no others."""
    export(str(out), name, str(tmp_path), Options())
    expected = [EXPECTED[name](row) for row in rows(out / "pruned")]
    found = rows(tmp_path)
    assert found == expected
    assert [list(row) for row in found[:1]] == [list(row) for row in expected[:1]], "columns in order"


def test_llama_factory_gets_a_folder_that_datasets_opens(out: Path, tmp_path: Path) -> None:
    """`load_from_disk` reads it, as LLaMA-Factory does, also with other libraries' random access."""
    export(str(out), "llama-factory", str(tmp_path), Options(rows_per_file=25))
    data = load_from_disk(str(tmp_path))
    expected = [same("input_ids", "attention_mask", "labels")(row) for row in rows(out / "pruned")]
    assert data.to_list() == expected
    assert data[31] == expected[31]
    assert data.split == "train"


@pytest.mark.parametrize("rows_per_file", [1, 7, 25, 60, 1000])
def test_files_have_the_wanted_size(rows_per_file: int, out: Path, tmp_path: Path) -> None:
    """All but the last hold so many rows, across the borders of shards, and none is lost or moved."""
    done = export(str(out), "parquet", str(tmp_path), Options(rows_per_file=rows_per_file))
    counts = [part.count_rows() for part in ds.dataset(tmp_path, format="parquet").get_fragments()]
    total = table(out / "pruned").num_rows
    assert counts == [rows_per_file] * (total // rows_per_file) + [total % rows_per_file] * (total % rows_per_file > 0)
    assert table(tmp_path).equals(table(out / "pruned"))
    assert (done.num_rows, len(done.files)) == (total, len(counts))


def test_by_default_there_is_a_file_a_shard(finished: FinishedOutput, tmp_path: Path) -> None:
    """Nothing is gathered in memory that the job had in pieces."""
    export(finished.root, "skyrl", str(tmp_path), Options())
    counts = [part.count_rows() for part in ds.dataset(tmp_path, format="parquet").get_fragments()]
    assert counts == list(finished.pruned_shards.values())
    assert list(accumulate(counts))[-1] == finished.manifest["counts"]["kept"]


def test_the_command_knows_every_format() -> None:
    """`--to` offers what the table holds, and the bound on analysis files is the same in both places."""
    assert {to.value for to in To} == set(FORMATS)
    assert inspect.signature(compare_export.export).parameters["max_samples"].default == Options().max_samples


@pytest.mark.parametrize("name", FORMATS)
def test_usage_names_the_folder(name: str, out: Path, tmp_path: Path) -> None:
    """The lines that are printed can be pasted: no placeholder is left in them but the user's own."""
    options = Options(pack_length=512 if name == "megatron-bridge" else None)
    done = export(str(out), name, str(tmp_path), options)
    assert str(tmp_path) in done.usage or name == "slime"
    assert "{{" not in done.usage
    assert "{folder}" not in done.usage
    assert done.num_bytes == sum(file.stat().st_size for file in tmp_path.rglob("*.*"))


def test_any_place_that_storage_writes_will_do(out: Path, tmp_path: Path) -> None:
    """A URI of an fsspec filesystem takes the same files as a local folder."""
    from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

    remote, local = f"memory://exports{tmp_path}", tmp_path / "local"
    for name in ("trl", "jsonl", "llama-factory", "hub", "analysis"):
        export(str(out), name, f"{remote}/{name}", Options())
        export(str(out), name, str(local / name), Options())
    memory = MemoryFileSystem()
    root = f"/exports{tmp_path}"
    found = {path.removeprefix(f"{root}/"): memory.cat_file(path) for path in memory.find(root)}
    assert found == {str(path.relative_to(local)): path.read_bytes() for path in local.rglob("*.*") if path.is_file()}


# --- what is refused


def test_a_folder_with_files_is_left_alone(out: Path, tmp_path: Path) -> None:
    """Not empty: refused. --overwrite replaces an export, whichever, and nothing else."""
    export(str(out), "hub", str(tmp_path), Options())
    with pytest.raises(OutputConflictError, match="not empty"):
        export(str(out), "trl", str(tmp_path), Options())
    export(str(out), "trl", str(tmp_path), Options(), overwrite=True)
    assert {path.suffix for path in tmp_path.rglob("*") if path.is_file()} == {".parquet"}
    (tmp_path / "thesis.tex").write_text("two years of work")
    with pytest.raises(OutputConflictError, match=r"thesis\.tex, which is not a file of an export"):
        export(str(out), "trl", str(tmp_path), Options(), overwrite=True)
    assert len(list(tmp_path.iterdir())) > 1, "nothing was removed"


@pytest.mark.parametrize("place", ["", "pruned", "scores", "quadrants"])
def test_an_output_is_never_overwritten(place: str, out: Path) -> None:
    """Not even where --overwrite and a slip of the hand aim at it."""
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for overwrite in (False, True):
        with pytest.raises(OutputConflictError):
            export(str(out), "parquet", str(out / place), Options(), overwrite=overwrite)
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}


def test_hidden_files_neither_matter_nor_go(out: Path, tmp_path: Path) -> None:
    """A clone of a repository can be exported into."""
    (tmp_path / ".gitattributes").write_text("*.parquet filter=lfs")
    export(str(out), "hub", str(tmp_path), Options())
    export(str(out), "hub", str(tmp_path), Options(), overwrite=True)
    assert (tmp_path / ".gitattributes").exists()


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("trl", Options(pack_length=512), "--pack-length applies to --to megatron-bridge only"),
        ("trl", Options(license="mit"), "--license applies to --to hub only"),
        ("analysis", Options(rows_per_file=5), "--rows-per-file"),
        ("megatron-bridge", Options(), "packed rows"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    name: str, options: Options, problem: str, out: Path, tmp_path: Path
) -> None:
    """With a word on where they belong, and before anything is written."""
    with pytest.raises(SpecError, match=problem):
        export(str(out), name, str(tmp_path), options)
    assert list(tmp_path.iterdir()) == []


def test_outputs_without_a_product_are_refused(tmp_path: Path) -> None:
    """Scores alone, and folders that hold no output, say what to do first."""
    scored = finished_output(tmp_path, chats(5), prune_by=None)
    for name in FORMATS:
        with pytest.raises(OutputConflictError, match="scores only") as refusal:
            export(scored.root, name, str(tmp_path / "x"), Options())
        assert "--from-scores" in refusal.value.hint
    with pytest.raises(OutputConflictError, match="not an output of qtune"):
        export(str(tmp_path), "trl", str(tmp_path / "x"), Options())


@pytest.mark.parametrize("how", [KeyboardInterrupt, StorageError])
def test_an_export_is_whole_or_not_there(
    how: type[BaseException], out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped, or out of space, after some files: none is left that would pass for the data, and a second try works."""
    write, written = file_io.write_table, iter(range(3))

    def fail_at_last(uri: str, table: Any, **more: Any) -> file_io.WrittenFile:
        if next(written, None) is None:
            raise how("enough")
        return write(uri, table, **more)

    with monkeypatch.context() as patched:
        patched.setattr(file_io, "write_table", fail_at_last)
        with pytest.raises(how):
            export(str(out), "trl", str(tmp_path), Options())
    assert list(tmp_path.iterdir()) == []
    export(str(out), "trl", str(tmp_path), Options())


def test_an_output_that_kept_nothing_is_refused(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainers stumble over empty datasets."""
    monkeypatch.setattr(FinishedOutput, "pruned_shards", {})
    with pytest.raises(DataError, match="kept no sample"):
        export(str(out), "trl", str(tmp_path), Options())


@pytest.mark.parametrize("name", [name for name in ALL if name != "megatron-bridge"])
def test_weights_of_infobatch_come_along_or_are_missed(name: str, weighed: FinishedOutput, tmp_path: Path) -> None:
    """Exports of all columns hold `qtune.loss_weight`; the others warn that it is gone."""
    done = export(weighed.root, name, str(tmp_path), Options())
    assert any("loss weights" in note for note in done.notes) == (name not in ("parquet", "jsonl", "hub"))
