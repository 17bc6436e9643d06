"""Validation of the files that a manifest or a marker lists. Anyone who can write to an output can write these as well.

Every shard file is `FOLDER/part-NNNNN.parquet`. Paths of a manifest or marker are taken only here. `Output.at` and
`storage/folder_io.py` check them again, after links, where they are used.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtune_service.errors import OutputConflictError

PART_FOLDERS = ("scores", "quadrants", "pruned", "rejected")
_PART = re.compile(rf"({'|'.join(PART_FOLDERS)})/part-(\d{{5,9}})\.parquet", re.ASCII)


class _Entry(BaseModel):
    model_config = ConfigDict(strict=True)

    path: str = Field(max_length=100)
    bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    rows: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class PartFile:
    """A shard's Parquet file."""

    folder: str
    shard: int
    size_bytes: int
    sha256: str
    rows: int

    @property
    def path(self) -> str:
        """Return its path below the output."""
        return part_path(self.folder, self.shard)

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a manifest has it."""
        return {"path": self.path, "rows": self.rows, "bytes": self.size_bytes, "sha256": self.sha256}


def part_path(folder: str, shard: int) -> str:
    """Return the path of a shard's file below its output."""
    return f"{folder}/part-{shard:05}.parquet"


def part_files(listed: Mapping[str, Any], *folders: str) -> list[PartFile]:
    """Return the files of a manifest or marker: of some folders, or of all.

    Raise OutputConflictError for an entry that this package does not write.
    """
    entries = listed.get("files")
    if not isinstance(entries, list):
        raise damaged("it lists no files")
    files = [_part_file(entry) for entry in entries]
    return [file for file in files if not folders or file.folder in folders]


def rows_by_shard(files: Iterable[PartFile]) -> dict[int, int]:
    """Return the number of rows of each shard."""
    return {file.shard: file.rows for file in files}


def _part_file(entry: Any) -> PartFile:
    try:
        checked = _Entry.model_validate(entry)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise damaged(f"a file's {'.'.join(map(str, first['loc'])) or 'entry'} is wrong: {first['msg']}") from None
    match = _PART.fullmatch(checked.path)
    if match is None or part_path(match[1], int(match[2])) != checked.path:
        raise damaged(f"it lists {checked.path!r}, which is not a shard file")
    return PartFile(match[1], int(match[2]), checked.bytes, checked.sha256, checked.rows)


def damaged(what: str) -> OutputConflictError:
    """Return the error for a manifest or marker that was changed."""
    return OutputConflictError(
        f"the output's manifest is not valid: {what}", "It was changed. Run the job again with another output."
    )
