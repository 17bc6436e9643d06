"""Removal of the files that jobs wrote to an output, and of nothing else.

Every removed file is named: shard files that a manifest, plan, marker or list of adopted files names, fixed names,
numbered working files, and hidden temporary files of interrupted writes. Folders are removed when they are empty. So a
user's own file in an output stays, except one with the name of a shard's file in a folder of shards, which trainers
would read as data. No link is followed.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from qtune_service.errors import DamagedFileError, OutputConflictError
from qtune_service.ingest.plan import STAGED
from qtune_service.output.layout import FILES, PART_FOLDERS, PART_NAME, Output, part_files

TOKENIZER_FILES = frozenset(
    {
        "added_tokens.json", "chat_template.jinja", "merges.txt", "preprocessor_config.json", "sentencepiece.bpe.model",
        "special_tokens_map.json", "spiece.model", "tokenizer.json", "tokenizer.model", "tokenizer_config.json",
        "vocab.json", "vocab.txt",
    }
)  # fmt: skip
"""Names of tokenizer files, for outputs of versions that did not record the files that they saved."""
WORKING = {
    "input/input": STAGED.pattern,  # of earlier versions
    "input": STAGED.pattern,
    "scanned": r"[0-9a-f]{32}\.json",
    "scored": r"\d{5,9}\.json",
    "pruned": r"\d{5,9}\.json",
    "partial": r"\d{5,9}\.arrow",
    "ranks": r"[a-z_]{1,40}-\d{5,9}\.bin",
}
"""Folders of `_qtune` that only a running job needs -> pattern of their file names."""
RECORDS = ("plan.json", "progress.json", "tokenizer.json", "adopted.json", "job.json", "lease", "lock")
"""Files of `_qtune` in the order of removal, so that the record of the owner remains until the end."""
DAMAGED = (OutputConflictError, DamagedFileError)
"""Errors of a record that was changed. The other records are used then. A storage error ends the removal."""
_PART = re.compile(PART_NAME, re.ASCII)
_TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?:\d+-)?[0-9a-f]{8}\.tmp", re.ASCII)
"""Names of `storage` for files that are not completely written."""


def clear(output: Output) -> None:
    """Remove all files that jobs wrote here, the manifest first. The caller holds the output's lock."""
    shards = frozenset(chain.from_iterable(_shard_numbers(output)))
    _remove(output, (), ["manifest.json"])
    for folder in PART_FOLDERS:
        _remove(output, (folder,), (name for name in output.list_files(folder) if _is_part(name, shards)))
    tokenizer = TOKENIZER_FILES | set(_recorded(output, "tokenizer.json"))
    _remove(output, ("tokenizer",), (name for name in output.tokenizer_files() if _plain(name) in tokenizer))
    _remove(output, (), (name for name in output.list_files() if _plain(name) in FILES))
    _drop_working_folders(output)
    records = {name: RECORDS.index(_plain(name)) for name in output.list_files("_qtune") if _plain(name) in RECORDS}
    for name in sorted(records, key=records.__getitem__):
        output.remove_file("_qtune", name)
    output.remove_folder_if_empty("_qtune")


def drop_strays(output: Output, listed: Iterable[str]) -> None:
    """Remove part files that the manifest does not list, of lost attempts, and temporary files of crashed runs."""
    keep = set(listed)
    for folder in PART_FOLDERS:
        strays = (name for name in output.list_files(folder) if f"{folder}/{name}" not in keep and _is_part(name, None))
        _remove(output, (folder,), strays, may_leave_empty=True)


def drop_working_files(output: Output) -> None:
    """Remove files that only a running job needs. The records of the owner remain."""
    _drop_working_folders(output)
    output.remove_file("_qtune", "plan.json")


def _drop_working_folders(output: Output) -> None:
    for folder, names in WORKING.items():
        path = ("_qtune", *folder.split("/"))
        _remove(
            output, path, (name for name in output.list_files(*path) if re.fullmatch(names, _plain(name), re.ASCII))
        )


def _remove(output: Output, folder: tuple[str, ...], names: Iterable[str], *, may_leave_empty: bool = False) -> None:
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: output.remove_file(*folder, name), names))
    if folder and not may_leave_empty:
        output.remove_folder_if_empty(*folder)


def _plain(name: str) -> str:
    """Return the final name of a file, also for a half-written one."""
    match = _TEMPORARY.fullmatch(name)
    return match["name"] if match else name


def _is_part(name: str, shards: frozenset[int] | None) -> bool:
    """Return whether a name is that of a shard's file. shards: the existing shards; None: any."""
    match = _PART.fullmatch(_plain(name))
    return match is not None and (shards is None or int(match[1]) in shards)


def _shard_numbers(output: Output) -> Iterator[Iterable[int]]:
    """Yield the shard numbers of each record of the output that can be read."""
    with contextlib.suppress(*DAMAGED):
        yield [file.shard for file in part_files(output.manifest or {"files": []})]
    with contextlib.suppress(*DAMAGED):
        planned = (output.read_object("_qtune", "plan.json") or {}).get("shards")
        yield range(len(planned) if isinstance(planned, list) else 0)
    yield _adopted(output)
    for stage in ("scored", "pruned"):
        yield output.marked(stage)
    yield output.partials()


def _adopted(output: Output) -> Iterable[int]:
    """Return the shards whose scores were being taken from another output."""
    names = set(_recorded(output, "adopted.json"))
    matches = (_PART.fullmatch(name.rpartition("/")[2]) for name in names)
    return [int(match[1]) for match in matches if match]


def _recorded(output: Output, record: str) -> list[str]:
    """Return the names in a record of `_qtune`."""
    with contextlib.suppress(*DAMAGED):
        names = (output.read_object("_qtune", record) or {}).get("files")
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return []
