"""Tests of the splits of files by name, against the installed `datasets` library."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from qtune_service.ingest.splits import files_by_split

FOLDERS = ("", "data/", "train/", "my-test set/", "raw/v1.dev/", "testing2/", "training_data/", "x/val/y/", "latest/")
NAMES = (
    "train.jsonl", "train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001-ab12.parquet",
    "train_sft-00000-of-00001.parquet", "a.jsonl", "gsm8k_train.jsonl", "gsm8k-dev.v2.json", "validation.csv",
    "evaluation data.tsv", "eval1.jsonl", "mytrain.jsonl", "Train.jsonl", "trainer.jsonl", "README.md", ".hidden.jsonl",
    "dataset_infos.json", "train", "2024.train.jsonl", "train-test.jsonl", "contest.jsonl",
)  # fmt: skip


def by_library(folder: Path) -> dict[str, list[str]]:
    """Return the splits that the library finds."""
    data_files = pytest.importorskip("datasets.data_files")
    try:
        patterns = data_files.get_data_patterns(str(folder))
    except (FileNotFoundError, data_files.EmptyDatasetError):
        return {}
    found = data_files.DataFilesDict.from_patterns(patterns, base_path=str(folder))
    return {str(split): sorted(Path(path).relative_to(folder).as_posix() for path in of) for split, of in found.items()}


@pytest.mark.parametrize("seed", range(60))
def test_the_splits_are_those_of_the_library(tmp_path: Path, seed: int) -> None:
    """Random folders: the same splits with the same files."""
    numbers = random.Random(seed)
    some = [numbers.choice(FOLDERS) + numbers.choice(NAMES) for _ in range(numbers.randint(1, 6))]
    if seed % 3 == 0:
        some = [path for path in some if "data" not in path and "train/" not in path] or ["a.jsonl"]
    for path in some:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text("{}")
    paths = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file())
    found = files_by_split(paths)
    assert {split: sorted(of) for split, of in found.items()} == by_library(tmp_path)


def test_known_splits_come_first_and_files_keep_their_order() -> None:
    """Pushed files have any split's name; train, validation and test lead."""
    paths = [f"data/{name}-0000{i}-of-00002.parquet" for name in ("zzz", "test", "aaa", "train") for i in (1, 0)]
    found = files_by_split(paths)
    assert list(found) == ["train", "test", "aaa", "zzz"]
    assert found["aaa"] == ["data/aaa-00001-of-00002.parquet", "data/aaa-00000-of-00002.parquet"]
    assert files_by_split([]) == {}
