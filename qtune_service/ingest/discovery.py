"""Find the input files behind paths, patterns, folders and URIs.

The first bytes of a file determine its kind (file_kinds.py). A file or pattern that the user names is read whatever its
suffix is, if its content is recognized. A folder is searched for data files (dataset_folders.py).

Of many files, sizes and times come from the listing, and the kind from the suffix. No request is sent for one of them.
The scan that reads such a file first checks its content (scanner.py).

A split selects files by their names in a folder, and folders of a DatasetDict. A named file must belong to the split by
its name. Files of the hub are divided before, by the card of their dataset.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from qtune_service.errors import DataError, NotAllowedError
from qtune_service.ingest.compression import HEAD_BYTES, Compression, head_bytes
from qtune_service.ingest.dataset_folders import FolderFiles, files_of_folder, no_such_split
from qtune_service.ingest.file_kinds import ENDING, IN_ROWS, SUPPORTED, Kind, identify, named_kind
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
    "find",
    "input_roots",
    "inspect_open",
    "notices",
]

INPUT_ROOTS = "QTUNE_INPUT_ROOTS"
"""Environment variable with a JSON list of folders; see `input_roots`."""
FEW_FILES = 256
"""Up to this number the content of each file is checked before anything else is done."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """An input file at the time of planning."""

    uri: str
    kind: Kind
    compression: Compression | None
    size_bytes: int
    version: str
    """Changes with the content; see `file_io.Entry`. Before the content was read: that of the listing."""
    modified: str = ""
    """Version in the listing that found the file. Empty for a file that was named."""
    is_checked: bool = True
    """Whether kind and compression follow from the content. False: from the suffix."""

    @property
    def is_in_rows(self) -> bool:
        """Return whether its rows are read by their numbers, as Arrow."""
        return self.kind in IN_ROWS

    @property
    def name(self) -> str:
        """Return the URI without options."""
        return file_io.display(self.uri)


@dataclass(frozen=True, slots=True)
class Found:
    """The files of an input, and sentences about those that are left out."""

    files: tuple[SourceFile, ...]
    notices: tuple[str, ...]


def find(paths: Iterable[str], split: str | None = None, *, max_checked: int = FEW_FILES) -> Found:
    """Return the files behind paths, globs, folders and URIs, in the given order and without duplicates.

    More files than `max_checked` are not opened, except those without a known suffix. Raises DataError if a path
    matches no file, a split is missing or ambiguous, or a file that is opened cannot be read.
    """
    listed, sentences = _list(paths, split)
    files = {uri: _unchecked(entry) if len(listed) > max_checked else None for uri, entry in listed.items()}
    opened = _inspect_all([listed[uri] for uri, file in files.items() if file is None])
    return Found(tuple(file or next(opened) for file in files.values()), tuple(sentences))


def discover(paths: Iterable[str], split: str | None = None) -> tuple[SourceFile, ...]:
    """Return the files of `find`, each of them opened and checked."""
    return tuple(_inspect_all(_list(paths, split)[0].values()))


def each_file(paths: Iterable[str], split: str | None = None) -> Iterator[SourceFile]:
    """Yield the files of `discover` one by one, inspecting each when it is reached."""
    return map(_inspect, _list(paths, split)[0].values())


def notices(paths: Iterable[str], split: str | None = None) -> list[str]:
    """Return a sentence for each folder of which files are left out, or of which all of several splits are read."""
    return _list(paths, split)[1]


def _list(paths: Iterable[str], split: str | None) -> tuple[dict[str, file_io.Entry], list[str]]:
    """Return the listed files by URI, and the sentences of `notices`."""
    found: dict[str, file_io.Entry] = {}
    sentences: list[str] = []
    for path in paths:
        entries, said = _expand(path, split)
        found |= {entry.uri: entry for entry in entries if entry.uri not in found}
        sentences += said
    return found, sentences


def _notices(name: str, files: FolderFiles) -> Iterator[str]:
    if files.splits:
        listed = ", ".join(files.splits)
        yield f"All splits of {name} are read: {listed}. To read one, give `split`, such as {files.splits[0]}."
    if files.unassigned:
        yield f"Left out of {name}, as they belong to no split: {_some(files.unassigned)}."
    if files.unread:
        yield f"Not read in {name}, as files of their kind are not supported: {_some(files.unread)}."
    if files.skipped:
        yield f"Left out of {name}, as they hold no records: {_some(files.skipped)}."


def _some(paths: Sequence[str]) -> str:
    return ", ".join(paths[:5]) + (", ..." if len(paths) > 5 else "")


def _expand(path: str, split: str | None) -> tuple[list[file_io.Entry], list[str]]:
    """Return the files behind a path, and the sentences about it. A version is empty where no listing has it."""
    location = file_io.resolve(path)
    if file_io.stat(path) is not None:
        name = location.path.rpartition("/")[2]
        entry = file_io.Entry(location.path if location.is_local else path, 0, "")
        return _of_split(path, {name: entry}, split), []
    if file_io.is_folder(path):
        _refuse_output(path)
        files = files_of_folder(path, split, _check_roots)
        return list(files.entries), [] if is_hub(path) else list(_notices(file_io.display(path), files))
    if file_io.is_glob(path):
        found = file_io.match_entries(path)
        if not found:
            raise DataError(f"no file matches {file_io.display(path)}", "Check the pattern, and quote it in a shell.")
        return _of_split(path, found, split), []
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


def _of_split(path: str, files: Mapping[str, file_io.Entry], split: str | None) -> list[file_io.Entry]:
    """Return the files that belong to the split by their names. files: by relative path."""
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


def _unchecked(entry: file_io.Entry) -> SourceFile | None:
    """Return a listed file with the kind of its suffix, None for one that must be opened."""
    kind, compression = named_kind(entry.uri)
    if not entry.version or kind is None or is_hub(entry.uri):
        return None
    _check_roots(entry.uri)
    return SourceFile(entry.uri, kind, compression, entry.size_bytes, entry.version, entry.version, is_checked=False)


def _inspect_all(entries: Iterable[file_io.Entry]) -> Iterator[SourceFile]:
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="discover") as pool:
        yield from pool.map(_inspect, entries)


def _inspect(entry: file_io.Entry) -> SourceFile:
    _check_roots(entry.uri)
    with file_io.open_ranges(entry.uri) as read:
        return inspect_open(entry.uri, read, entry.version)


def inspect_open(uri: str, read: file_io.Ranges, modified: str) -> SourceFile:
    """Return an open file with the kind of its content. Raise DataError for content that cannot be read."""
    head = read(0, HEAD_BYTES)
    if (wanted := head_bytes(head)) > len(head):
        head += read(len(head), wanted)
    kind, compression = identify(file_io.display(uri), head, is_whole=read.size_bytes <= len(head))
    return SourceFile(uri, kind, compression, read.size_bytes, read.version, modified)


def changes(planned: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[str]:
    """Return the differences between planned and current files, one sentence each."""
    before, after = {file.uri: file for file in planned}, {file.uri: file for file in now}
    found = [f"{file.name} is gone" for file in planned if file.uri not in after]
    found += [f"{file.name} is new" for file in now if file.uri not in before]
    both = [(file, after[uri]) for uri, file in before.items() if uri in after]
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="changes") as pool:
        same = pool.map(lambda pair: _is_same(*pair), both)
        found += [f"{file.name} has changed" for (file, _), is_same in zip(both, same, strict=True) if not is_same]
    if not found and list(before) != list(after):
        found.append("the files are named in another order")
    return found


def _is_same(planned: SourceFile, now: SourceFile) -> bool:
    """Return whether a file has the content that was planned. A request is sent only where the listing differs."""
    if planned.size_bytes != now.size_bytes:
        return False
    if planned.version == now.version or (planned.modified and planned.modified == now.modified):
        return True
    entry = None if now.is_checked else file_io.stat(now.uri)
    return entry is not None and entry.version == planned.version
