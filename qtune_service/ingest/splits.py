"""Assign the files of a dataset to splits by their names, as the `datasets` library does.

Three rules apply in this order, and the first that matches any file decides for all of them:

1. `data/NAME-00000-of-00001.parquet`: files that were pushed with the library. NAME is the split.
2. A folder whose name contains a keyword of a split: `train/a.jsonl`, `my-test-set/a.jsonl`.
3. A file whose name contains a keyword: `train.csv`, `gsm8k_dev.v2.jsonl`.

A keyword is a whole word between `-`, `.`, `_`, blanks and digits. If no rule matches, all files are `train`. The rules
are those of `datasets/data_files.py`, and a test compares them with the installed library.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

KEYWORDS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}
METADATA = frozenset(
    ("README.md", "config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "dummy_data.zip")
)
"""Names of files that describe a dataset and hold no records, for the library."""
_SEPARATORS = "-._ 0-9"
_PUSHED = re.compile(r"data/(?P<split>[^/]*)-[0-9]{5}-of-[0-9]{5}[^/]*\.[^/]*", re.DOTALL)
_FOLDER = {
    split: re.compile(rf"(?:.*[{_SEPARATORS}])?(?:{'|'.join(words)})(?:[{_SEPARATORS}].*)?", re.DOTALL)
    for split, words in KEYWORDS.items()
}
_FILE = {
    split: re.compile(rf"(?:.*[{_SEPARATORS}])?(?:{'|'.join(words)})[{_SEPARATORS}].*", re.DOTALL)
    for split, words in KEYWORDS.items()
}


def files_by_split(paths: Sequence[str]) -> dict[str, list[str]]:
    """Return the files of each split: `train`, `validation` and `test` first, then the others by name.

    paths: relative to the folder of the dataset, with `/`. Hidden files and METADATA are left out. Files keep their
    order. A file with keywords of two splits is in both, and a file without a keyword is in none if others have one.
    """
    data = [path for path in paths if not _is_left_out(path)]
    return _pushed(data) or _by_folder(data) or _by_name(data) or ({"train": data} if data else {})


def _is_left_out(path: str) -> bool:
    *folders, name = path.split("/")
    return name in METADATA or name.startswith(".") or any(part.startswith((".", "__")) for part in folders)


def _pushed(paths: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for path in paths:
        if match := _PUSHED.fullmatch(path):
            found.setdefault(match["split"], []).append(path)
    return {split: found[split] for split in [*(name for name in KEYWORDS if name in found), *sorted(found)]}


def _by_folder(paths: Sequence[str]) -> dict[str, list[str]]:
    by_split = {
        split: [path for path in paths if any(map(pattern.fullmatch, path.split("/")[:-1]))]
        for split, pattern in _FOLDER.items()
    }
    return {split: found for split, found in by_split.items() if found}


def _by_name(paths: Sequence[str]) -> dict[str, list[str]]:
    by_split = {
        split: [path for path in paths if pattern.fullmatch(path.rpartition("/")[2])]
        for split, pattern in _FILE.items()
    }
    return {split: found for split, found in by_split.items() if found}
