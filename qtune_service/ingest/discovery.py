"""From what the user named to the files to read.

A folder is walked; files with a known ending count, hidden ones and those that start with `_` do not. Content wins
over the name: the first bytes tell Parquet, gzip, zstd, JSON arrays and JSON lines apart, so a `.json` file of JSON
lines is read as such, and a file of unknown ending is taken if its content is known and it was named itself.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import orjson

from qtune_service.errors import DataError, NotAllowedError, StorageError
from qtune_service.ingest.decompress import NARROW, BrokenStreamError, Compression, compression_of, decompress
from qtune_service.ingest.jsonl import BOM
from qtune_service.storage import file_io
from qtune_service.storage.confined import is_really_below

Kind = Literal["jsonl", "json", "parquet"]
HEAD_BYTES = 64 << 10
SUPPORTED = "Supported: .jsonl, .ndjson, .json (array, or object of columns), each also .gz or .zst, and .parquet."
INPUT_ROOTS = "QTUNE_INPUT_ROOTS"
"""Environment variable with a JSON list; see `input_roots`."""
ENDING = re.compile(r"\.(jsonl|ndjson|json|parquet|pq)(?:\.(gz|gzip|zst|zstd))?$", re.IGNORECASE)
_FOREIGN = (
    (b"PK\x03\x04", "a zip archive"),
    (b"ARROW1", "an Arrow file"),
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ", "xz"),
)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One input file as it was when the job was planned."""

    uri: str
    kind: Kind
    compression: Compression | None
    size_bytes: int
    version: str

    @property
    def name(self) -> str:
        """The URI as its user would recognise it."""
        return file_io.display(self.uri)


def discover(paths: Iterable[str]) -> tuple[SourceFile, ...]:
    """Files behind paths, globs, folders and URIs, in the order given, each once.

    Raises DataError where a path leads to nothing or to something that cannot be read.
    """
    found = dict.fromkeys(uri for path in paths for uri in _expand(path))
    with ThreadPoolExecutor(max_workers=16, thread_name_prefix="discover") as pool:
        return tuple(pool.map(_look, found))


def each_file(paths: Iterable[str]) -> Iterator[SourceFile]:
    """The same one after the other, each looked at only when it is its turn."""
    return map(_look, dict.fromkeys(uri for path in paths for uri in _expand(path)))


def _expand(path: str) -> list[str]:
    location = file_io.resolve(path)
    if file_io.stat(path) is not None:
        return [location.path if location.is_local else path]
    if file_io.is_folder(path):
        return _files_of_folder(path)
    if file_io.is_glob(path):
        found = file_io.glob(path)
        if not found:
            raise DataError(f"no file matches {file_io.display(path)}", "Check the pattern, and quote it in a shell.")
        return found
    raise DataError(f"no such file or folder: {file_io.display(path)}", "Check the path.")


def _files_of_folder(folder: str) -> list[str]:
    files = [uri for uri in file_io.list_files(folder) if not _is_hidden(file_io.relative(uri, folder))]
    known = [uri for uri in files if ENDING.search(file_io.display(uri))]
    if not known:
        others = ", ".join(file_io.relative(uri, folder) for uri in files[:5])
        what = f"it holds only {others}{', ...' if len(files) > 5 else ''}" if files else "it is empty"
        raise DataError(f"no data files in {file_io.display(folder)}: {what}", SUPPORTED)
    return known


def _is_hidden(relative: str) -> bool:
    return any(part.startswith((".", "_")) for part in relative.split("/"))


def input_roots() -> tuple[str, ...] | None:
    """Return the folders that local input files must really be in, after links; None: anywhere.

    A server sets them for its drivers: only where a job runs is it known which files a pattern or a folder leads to.
    """
    text = os.environ.get(INPUT_ROOTS)
    return None if text is None else tuple(json.loads(text))


def _check_place(uri: str) -> None:
    """Raise NotAllowedError for a local file that is, after links, in none of the input roots."""
    at, roots = file_io.resolve(uri), input_roots()
    if roots is not None and at.is_local and not is_really_below(Path(at.path), roots):
        raise NotAllowedError(
            f"{file_io.display(uri)} is a link out of the folders that jobs may read",
            "The administrator can add the folder that it leads to: QTUNE_ALLOWED_INPUTS.",
        )


def _look(uri: str) -> SourceFile:
    _check_place(uri)
    entry = file_io.stat(uri)
    if entry is None:
        raise StorageError(f"cannot read {file_io.display(uri)}: it does not exist any more", "Check the path.")
    head = file_io.read_range(uri, 0, HEAD_BYTES)
    kind, compression = identify(file_io.display(uri), head, is_whole=entry.size_bytes <= len(head))
    return SourceFile(uri, kind, compression, entry.size_bytes, entry.version)


def identify(name: str, head: bytes, *, is_whole: bool) -> tuple[Kind, Compression | None]:
    """Kind and compression of a file by its first bytes, then by its name."""
    compression = compression_of(head)
    if compression is not None:
        head, is_whole = _inflate(head, compression)
    ending = ENDING.search(name)
    named = ending.group(1).lower() if ending else ""
    if head.startswith(b"PAR1") and compression is None:
        return "parquet", None
    _refuse_foreign(name, named, head, compression)
    return _kind_of_text(name, named, head.removeprefix(BOM).lstrip(), is_whole=is_whole), compression


def _refuse_foreign(name: str, named: str, head: bytes, compression: Compression | None) -> None:
    foreign = next((what for magic, what in _FOREIGN if head.startswith(magic)), None)
    if head.startswith(b"PAR1"):
        foreign = f"Parquet inside .{compression}; Parquet compresses by itself"
    if foreign is None and named in ("parquet", "pq"):
        foreign = "not Parquet: its first bytes are not PAR1"
    if foreign is not None:
        raise DataError(f"cannot read {name}: it is {foreign}", SUPPORTED)


def _kind_of_text(name: str, named: str, text: bytes, *, is_whole: bool) -> Kind:
    is_array, is_object = text.startswith(b"["), text.startswith(b"{")
    first, newline, rest = text.partition(b"\n")
    goes_on = bool(rest.strip()) or (bool(newline) and not is_whole)
    if (is_array or is_object) and newline and goes_on and _is_json(first):
        return "jsonl"
    if named in ("jsonl", "ndjson") and not is_array:
        return "jsonl"
    if is_array or is_object or named == "json":
        return "json"
    raise DataError(f"cannot tell what {name} is", SUPPORTED)


def _inflate(head: bytes, compression: Compression) -> tuple[bytes, bool]:
    """What a compressed file's head holds, and whether that is all. No more than is wanted is decompressed."""
    text = b""
    try:
        for piece in decompress(iter([head]), compression, NARROW):
            text += piece
            if len(text) > HEAD_BYTES:
                return text[:HEAD_BYTES], False
    except BrokenStreamError:  # as expected: the head is a part of the stream
        return text, False
    return text, True


def _is_json(line: bytes) -> bool:
    try:
        orjson.loads(line)
    except ValueError:
        return False
    return True


def changes(planned: Sequence[SourceFile], now: Sequence[SourceFile]) -> list[str]:
    """What differs between the files of a plan and those found now, a sentence each."""
    before, after = {file.uri: file for file in planned}, {file.uri: file for file in now}
    told = [f"{file.name} is gone" for file in planned if file.uri not in after]
    told += [f"{file.name} is new" for file in now if file.uri not in before]
    told += [f"{file.name} has changed" for uri, file in before.items() if uri in after and after[uri] != file]
    if not told and list(before) != list(after):
        told.append("the files are named in another order")
    return told
