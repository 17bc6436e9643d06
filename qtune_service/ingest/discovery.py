"""Find the input files behind paths, patterns, folders and URIs.

The first bytes of a file determine its kind (file_kinds.py). A file or pattern that the user names is read whatever its
suffix is, if its content is recognized. A folder is searched for data files (dataset_folders.py).

A split selects files by their names in a folder, and folders of a DatasetDict. A named file must belong to the split by
its name. Files of the hub are divided before, by the card of their dataset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qtune_service.errors import DataError, NotAllowedError, StorageError
from qtune_service.ingest.compression import HEAD_BYTES, Compression, head_bytes
from qtune_service.ingest.dataset_folders import files_of_folder, no_such_split
from qtune_service.ingest.file_kinds import ENDING, IN_ROWS, SUPPORTED, Kind, identify
from qtune_service.ingest.splits import files_by_split
from qtune_service.storage import file_io
from qtune_service.storage.confined import is_really_below
from qtune_service.storage.hub_uri import is_hub

__all__ = [
    "ENDING",
    "INPUT_ROOTS",
    "SUPPORTED",
    "SourceFile",
    "changes",
    "discover",
    "each_file",
    "input_roots",
    "notices",
]

INPUT_ROOTS = "QTUNE_INPUT_ROOTS"
"""Environment variable with a JSON list of folders; see `input_roots`."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An input file at the time of planning."""

    uri: str
    kind: Kind
    compression: Compression | None
    size_bytes: int
    version: str

    @property
    def is_in_rows(self) -> bool:
        """Return whether its rows are read by their numbers, as Arrow."""
        return self.kind in IN_ROWS

    @property
    def name(self) -> str:
        """Return the URI without options."""
        return file_io.display(self.uri)


def discover(paths: Iterable[str], split: str | None = None) -> tuple[SourceFile, ...]:
    """Return the files behind paths, globs, folders and URIs, in the given order and without duplicates.

    Raises DataError if a path matches no file, a split is missing or ambiguous, or a file cannot be read.
    """
    found = dict.fromkeys(uri for path in paths for uri in _expand(path, split))
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="discover") as pool:
        return tuple(pool.map(_inspect, found))


def each_file(paths: Iterable[str], split: str | None = None) -> Iterator[SourceFile]:
    """Yield the files of `discover` one by one, inspecting each when it is reached."""
    return map(_inspect, dict.fromkeys(uri for path in paths for uri in _expand(path, split)))


def notices(paths: Iterable[str], split: str | None = None) -> list[str]:
    """Return a sentence for each folder of which files are left out, or of which all of several splits are read."""
    found: list[str] = []
    for path in paths:
        if is_hub(path) or file_io.stat(path) is not None or not file_io.is_folder(path):
            continue
        name, files = file_io.display(path), files_of_folder(path, split, _check_roots)
        if files.splits:
            listed = ", ".join(files.splits)
            found.append(
                f"All splits of {name} are read: {listed}. To read one, give `split`, such as {files.splits[0]}."
            )
        if files.unassigned:
            found.append(f"Left out of {name}, as they belong to no split: {_some(files.unassigned)}.")
        if files.unread:
            found.append(f"Not read in {name}, as files of their kind are not supported: {_some(files.unread)}.")
        if files.skipped:
            found.append(f"Left out of {name}, as they hold no records: {_some(files.skipped)}.")
    return found


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def _expand(path: str, split: str | None) -> list[str]:
    location = file_io.resolve(path)
    if file_io.stat(path) is not None:
        return _of_split(path, {location.path.rpartition("/")[2]: location.path if location.is_local else path}, split)
    if file_io.is_folder(path):
        _refuse_output(path)
        return list(files_of_folder(path, split, _check_roots).uris)
    if file_io.is_glob(path):
        found = file_io.glob(path)
        if not found:
            raise DataError(f"no file matches {file_io.display(path)}", "Check the pattern, and quote it in a shell.")
        depth = next(i for i, segment in enumerate(location.path.split("/")) if any(sign in segment for sign in "*?["))
        return _of_split(path, {"/".join(file_io.resolve(uri).path.split("/")[depth:]): uri for uri in found}, split)
    raise DataError(f"no such file or folder: {file_io.display(path)}", "Check the path.")


def _refuse_output(folder: str) -> None:
    """Raise DataError for the output of a job, whose folders hold scores, labels and rows."""
    if all(file_io.exists(file_io.join(folder, name)) for name in ("manifest.json", "scores")):
        shown = file_io.display(folder)
        raise DataError(
            f"{shown} is the output of a qtune job",
            f"To read its kept samples, give {file_io.join(shown, 'pruned')}. To prune its scores again, use "
            f"--from-scores {shown}.",
        )


def _of_split(path: str, files: dict[str, str], split: str | None) -> list[str]:
    """Return the files that belong to the split by their names. files: relative paths to URIs."""
    if split is None or is_hub(path):
        return list(files.values())
    by_name = files_by_split(list(files))
    if split not in by_name:
        raise no_such_split(path, split, list(by_name))
    return [files[name] for name in by_name[split]]


def input_roots() -> tuple[str, ...] | None:
    """Return the folders that must contain local input files after links are resolved; None for no limit.

    A server sets them for its drivers, because only the machine of a job knows the files behind a pattern or folder.
    """
    text = os.environ.get(INPUT_ROOTS)
    return None if text is None else tuple(json.loads(text))


def _check_roots(uri: str) -> None:
    """Raise NotAllowedError for a local file outside of the input roots, with links resolved."""
    at, roots = file_io.resolve(uri), input_roots()
    if roots is not None and at.is_local and not is_really_below(Path(at.path), roots):
        raise NotAllowedError(
            f"{file_io.display(uri)} is a link to a folder that jobs may not read",
            "Ask the administrator to add its target to QTUNE_ALLOWED_INPUTS.",
        )


def _inspect(uri: str) -> SourceFile:
    _check_roots(uri)
    entry = file_io.stat(uri)
    if entry is None:
        raise StorageError(f"cannot read {file_io.display(uri)}: it does not exist any more", "Check the path.")
    head = file_io.read_range(uri, 0, HEAD_BYTES)
    if (wanted := head_bytes(head)) > len(head):
        head += file_io.read_range(uri, len(head), wanted)
    kind, compression = identify(file_io.display(uri), head, is_whole=entry.size_bytes <= len(head))
    return SourceFile(uri, kind, compression, entry.size_bytes, entry.version)


def changes(planned: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[str]:
    """Return the differences between planned and current files, one sentence each."""
    before, after = {file.uri: file for file in planned}, {file.uri: file for file in now}
    found = [f"{file.name} is gone" for file in planned if file.uri not in after]
    found += [f"{file.name} is new" for file in now if file.uri not in before]
    found += [f"{file.name} has changed" for uri, file in before.items() if uri in after and after[uri] != file]
    if not found and list(before) != list(after):
        found.append("the files are named in another order")
    return found
