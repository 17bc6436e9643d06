"""Find the data files in a folder as people have them, with metadata, caches and several splits among them.

Left out, in this order:
- hidden files and folders, and those that begin with `_`: `.git`, `.gitattributes`, `_SUCCESS`, `__MACOSX`
- files without a known suffix: README.md, LICENSE, locks, checkpoints; archives and workbooks, which `notices` reports
- caches of the `datasets` library: `cache-0123abc.arrow`
- files of METADATA, if their content is one object that describes a data set or a model and holds no records

A folder of `save_to_disk` (with state.json) has the files that state.json lists, in that order. A DatasetDict (with
dataset_dict.json) has such a folder for each split: one is read, and several need a choice. Other folders are divided
into splits by the names of their files; see splits.py. Without a choice all are read, and `notices` reports it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from qtune_service.errors import DataError
from qtune_service.ingest.fields import PROMPT_TEXTS, TURN_COLUMNS
from qtune_service.ingest.file_kinds import ENDING, SUPPORTED
from qtune_service.ingest.json_shapes import is_turn, wrapper_keys
from qtune_service.ingest.splits import files_by_split
from qtune_service.storage import file_io

METADATA = frozenset(
    {
        "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "croissant.json",
        "metadata.json", "datapackage.json", "config.json", "generation_config.json", "tokenizer.json",
        "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
        "preprocessor_config.json", "processor_config.json", "adapter_config.json", "trainer_state.json",
        "training_args.json", "all_results.json", "train_results.json", "eval_results.json",
        "model.safetensors.index.json", "pytorch_model.bin.index.json", "package.json", "manifest.json",
    }
)  # fmt: skip
"""Names of files that describe data or models."""
MAX_METADATA_BYTES = 64 << 20
STATE, DICT = "state.json", "dataset_dict.json"
_OWN = frozenset({*TURN_COLUMNS, *PROMPT_TEXTS, "input_ids", "text"})
"""Keys that a record has and metadata has not."""
_UNREAD = re.compile(
    r"\.(?:zip|7z|rar|tar|tgz|tar\.\w+|xlsx?|pkl|pickle|npz|npy|h5|hdf5|orc|avro|db|sqlite3?|lz4|br)$", re.IGNORECASE
)
"""Suffixes of files that may hold records and are not read."""
_CACHE = re.compile(r"cache-[0-9a-f]{8,}(?:_[0-9]{5}_of_[0-9]{5})?\.arrow")
_SHOWN = 20


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The data files of a folder."""

    entries: tuple[file_io.Entry, ...]
    skipped: tuple[str, ...]
    """Files of METADATA and caches that are left out, relative to the folder."""
    unread: tuple[str, ...]
    """Archives and other files of unsupported kinds."""
    splits: tuple[str, ...]
    """Splits of the files by their names, if all of several splits are read."""
    unassigned: tuple[str, ...]
    """Files that belong to no split by their names, while others do and one split is read."""


def files_of_folder(folder: str, split: str | None, check: Callable[[str], None]) -> FolderFiles:
    """Return the data files of a folder, of one split if it is given. Raise DataError if there are none.

    check: is called with each file of metadata before it is read, and raises for one that may not be read.
    """
    listed = {path: one for path, one in file_io.list_entries(folder).items() if not _is_hidden(path)}
    by_path = {path: one.uri for path, one in listed.items()}
    skipped: list[str] = []
    found = _Folder(folder, by_path, skipped, check).files(split)
    if not found:
        raise _no_files(folder, list(by_path))
    plain = [path for path, is_saved in found.items() if not is_saved]
    by_name = files_by_split(plain)
    unread = tuple(path for path in by_path if _UNREAD.search(path))
    if split is None:
        splits = tuple(by_name) if len(by_name) > 1 else ()
        return FolderFiles(tuple(map(listed.__getitem__, found)), tuple(skipped), unread, splits, ())
    chosen = set(by_name.get(split, ()))
    kept = [path for path, is_saved in found.items() if is_saved or path in chosen]
    if not kept:
        raise no_such_split(folder, split, list(by_name))
    assigned = {path for paths in by_name.values() for path in paths}
    unassigned = tuple(path for path in plain if path not in assigned)
    return FolderFiles(tuple(map(listed.__getitem__, kept)), tuple(skipped), unread, (), unassigned)


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def _no_files(folder: str, paths: Sequence[str]) -> DataError:
    others = ", ".join(paths[:5])
    what = f"it holds only {others}{', ...' if len(paths) > 5 else ''}" if paths else "it is empty"
    return DataError(f"no data files in {file_io.display(folder)}: {what}", SUPPORTED)


def no_such_split(name: str, split: str, splits: Sequence[str]) -> DataError:
    """Return the error for a split that is not there."""
    listed = ", ".join(splits[:_SHOWN]) or "none"
    return DataError(
        f"{file_io.display(name)} has no split {split!r}", f"Its splits: {listed}. Choose one of them, or leave it out."
    )


class _Folder:
    """Files of a folder and its subfolders by their relative paths."""

    def __init__(self, folder: str, by_path: dict[str, str], skipped: list[str], check: Callable[[str], None]) -> None:
        self._folder = folder
        self._by_path = by_path
        self._skipped = skipped
        self._check = check
        self._objects: dict[str, dict[str, Any] | None] = {}

    def files(self, split: str | None) -> dict[str, bool]:
        """Return the data files in order, and whether each is in a folder of `save_to_disk`."""
        folders = dict.fromkeys(map(_parent, self._by_path))
        dicts = {at: splits for at in folders if (splits := self._splits(at)) is not None}
        chosen = {at: self._choose(at, splits, split) for at, splits in dicts.items()}
        saved: dict[str, list[str] | None] = {at: one for at in folders if (one := self._saved(at)) is not None}
        found: dict[str, bool] = {}
        for path in self._by_path:
            at = _parent(path)
            if self._is_in_other_split(at, chosen):
                continue
            if at in saved:
                if (files := saved[at]) is not None:
                    found |= dict.fromkeys(self._state_files(at, files, split, in_dict=_parent(at) in dicts), True)
                saved[at] = None
            elif ENDING.search(path):
                if path == _join(at, DICT) and at in dicts:
                    continue
                if at in dicts or self._is_left_out(path):
                    self._skipped.append(path)
                else:
                    found[path] = False
        return found

    def _splits(self, at: str) -> list[str] | None:
        """Return the splits of a DatasetDict, or None for another folder."""
        content = self._object(_join(at, DICT))
        splits = (content or {}).get("splits")
        if not isinstance(splits, list) or not all(isinstance(one, str) for one in splits):
            return None
        return [one for one in splits if any(path.startswith(_join(at, one) + "/") for path in self._by_path)]

    def _saved(self, at: str) -> list[str] | None:
        """Return the files of a folder of `save_to_disk`, or None for another folder."""
        content = self._object(_join(at, STATE))
        files = (content or {}).get("_data_files")
        if not isinstance(files, list) or not all(isinstance(one, dict) and "filename" in one for one in files):
            return None
        if (content or {}).get("_indices_data_files"):
            raise DataError(
                f"{file_io.display(file_io.join(self._folder, at) if at else self._folder)} was saved with an index of "
                "selected rows, by an old version of datasets",
                "Load it and save it again: load_from_disk(...).flatten_indices().save_to_disk(...).",
            )
        return [str(one["filename"]) for one in files]

    def _choose(self, at: str, splits: list[str], split: str | None) -> str | None:
        """Return the split to read of a DatasetDict. Raise DataError for several without a choice."""
        name = file_io.join(self._folder, at) if at else self._folder
        if split is not None and split not in splits:
            raise no_such_split(name, split, splits)
        if split is None and len(splits) > 1:
            listed = ", ".join(splits[:_SHOWN])
            raise DataError(
                f"{file_io.display(name)} has several splits: {listed}",
                f"Choose one with split (--split {splits[0]}), or name the folder of one.",
            )
        return split or (splits[0] if splits else None)

    @staticmethod
    def _is_in_other_split(at: str, chosen: dict[str, str | None]) -> bool:
        """Return whether a folder is below a DatasetDict and not in its chosen split."""
        return any(
            below and (one is None or not (below + "/").startswith(f"{one}/"))
            for parent, one in chosen.items()
            if (below := _below(at, parent)) is not None
        )

    def _state_files(self, at: str, names: list[str], split: str | None, *, in_dict: bool) -> Iterator[str]:
        """Yield the files of a saved data set in its own order, of which none may be missing."""
        state = self._object(_join(at, STATE)) or {}
        own = state.get("_split") or "train"
        name = file_io.join(self._folder, at) if at else self._folder
        if split is not None and not in_dict and split != own:
            raise no_such_split(name, split, [own])
        for file in names:
            path = _join(at, file)
            if path not in self._by_path:
                raise DataError(
                    f"{file_io.display(name)} is incomplete: {STATE} lists {file[:200]}, which is not there",
                    "Copy the folder again, or save it again with save_to_disk.",
                )
            yield path
        known = {_join(at, file) for file in (*names, STATE, "dataset_info.json")}
        direct = [path for path in self._by_path if path.rpartition("/")[0] == at]
        self._skipped += [path for path in direct if path not in known and ENDING.search(path)]

    def _is_left_out(self, path: str) -> bool:
        """Return whether a file is a cache, or has the name and the content of metadata: an object without records."""
        name = path.rpartition("/")[2]
        if _CACHE.fullmatch(name):
            return True
        content = self._object(path) if name in METADATA else None
        return content is not None and not _holds_records(content)

    def _object(self, path: str) -> dict[str, Any] | None:
        """Return the content of a file that is one JSON object, else None."""
        if path not in self._by_path:
            return None
        if path not in self._objects:
            self._check(self._by_path[path])
            self._objects[path] = _read_object(self._by_path[path])
        return self._objects[path]


def _join(at: str, name: str) -> str:
    return f"{at}/{name}" if at else name


def _parent(at: str) -> str:
    return at.rpartition("/")[0]


def _below(at: str, parent: str) -> str | None:
    """Return the path of a folder relative to one above it, or None if it is elsewhere."""
    if not parent or at == parent:
        return "" if at == parent else at
    return at[len(parent) + 1 :] if at.startswith(parent + "/") else None


def _read_object(uri: str) -> dict[str, Any] | None:
    data = file_io.read_range(uri, 0, MAX_METADATA_BYTES + 1)
    try:
        content = json.loads(data) if len(data) <= MAX_METADATA_BYTES else None
    except (ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def _holds_records(content: dict[str, Any]) -> bool:
    """Return whether an object is a record, has columns, or wraps a list of records."""
    if any(isinstance(content.get(key), str | list) and content[key] for key in _OWN & content.keys()):
        return True
    columns = [value for value in content.values() if isinstance(value, dict) and value]
    if len(columns) == len(content) and columns and all(all(map(str.isdecimal, column)) for column in columns):
        return True
    keys = wrapper_keys(content)
    return any(not _OWN.isdisjoint(content[key][0]) or is_turn(content[key][0]) for key in keys)
