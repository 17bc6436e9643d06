"""Data types of a plan: input files, chunks to scan, scan results, and shards to read. All serialize to JSON.

A chunk is a part of an input file that has not been read. A shard is a part with exact bytes or rows, absolute line
numbers, a digest, and the selected records. So every shard can be read on any node, any number of times, with the same
result.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import pyarrow as pa
from pydantic import TypeAdapter

from qtune_service.config import FormatName
from qtune_service.errors import DataError, OutputConflictError
from qtune_service.ingest.discovery import SourceFile, changes
from qtune_service.ingest.records import ColumnNames
from qtune_service.storage import file_io

STAGED = re.compile(r"\d{4,9}-(?:\d{1,19}-)?\d{5,9}\.(?:jsonl|arrow)", re.ASCII)
"""Names of staged files; see `staged_name`."""
ALL_ROWS = 1 << 62
"""End of a chunk of rows that covers a file whose footer has not been read."""


def staged_name(file_index: int, number: int, start: int | None = None, kind: str = "jsonl") -> str:
    """Return the name of staged file `number` of an input file, or of its part that begins at `start`."""
    part = "" if start is None else f"{start}-"
    return f"{file_index:04d}-{part}{number:05d}.{kind}"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A unit of scan work: bytes of a JSONL file, rows of a Parquet or Arrow file, or a file to be staged.

    Only files in blocks or frames are staged in several chunks.
    """

    index: int
    file_index: int
    file: SourceFile
    start: int
    stop: int
    shard_bytes: int
    """Size of staged pieces, and of pieces of rows."""
    is_part: bool = False
    """Whether it is a range of a compressed file (frames.py)."""

    def to_json(self) -> str:
        """Serialize to JSON."""
        return TypeAdapter(Chunk).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Chunk:
        """Deserialize from JSON."""
        return TypeAdapter(Chunk).validate_json(text)


@dataclass(frozen=True, slots=True)
class Piece:
    """A future shard: exact bytes [start, stop) of whole lines, or rows. Blank lines count as lines."""

    uri: str
    start: int
    stop: int
    num_lines: int
    num_records: int
    """Non-blank lines, parsable or not."""
    digest: str
    """SHA-256 of the bytes. Empty for rows of an input file, which are checked by the version of the file."""
    categories: dict[str, int]
    """Records of each category in `take`."""


@dataclass(frozen=True, slots=True)
class ChunkScan:
    """Result of scanning a chunk."""

    index: int
    file_index: int
    pieces: tuple[Piece, ...]
    schema_ipc: str
    """Merged Arrow schema of its records, before `schema.finish`."""
    format: FormatName | None
    keys: tuple[str, ...]
    """Columns of its first valid records."""
    categories_seen: tuple[str, ...]
    first_problem: str
    unknown: tuple[str, str] | None = None
    """The explanation of a format that is not detected (unknown_format.py)."""
    file: SourceFile | None = None
    """The file as its content shows it. Without pieces, its suffix was wrong, and it must be cut and scanned again."""
    frames: tuple[int, int] | None = None
    """Of a range of a compressed file: position of its first frame, and behind its last one. (-1, -1): none."""
    is_broken: bool = False
    """Whether a range of a compressed file could not be read on its own."""

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of the chunk."""
        return decode_schema(self.schema_ipc)

    def to_json(self) -> str:
        """Serialize to JSON."""
        return TypeAdapter(ChunkScan).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ChunkScan:
        """Deserialize from JSON."""
        return TypeAdapter(ChunkScan).validate_json(text)


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of work that is read, scored and written together."""

    index: int
    file_index: int
    uri: str
    kind: Literal["jsonl", "parquet", "arrow"]
    """JSON lines of the input or staged, rows of a file of this kind, or staged rows (arrow, with a digest)."""
    format: FormatName
    start: int
    stop: int
    first_line: int
    """Line (JSON lines, CSV), record (JSON arrays) or row (Parquet, Arrow) of the source file, from 1."""
    digest: str
    num_records: int
    """Records that the job reads from it."""
    take: dict[str, int] | None
    """With categories: number of first records to take of each."""
    limit: int | None
    """Number of records after which it stops."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All shards of a job, in input order."""

    files: tuple[SourceFile, ...]
    shards: tuple[Shard, ...]
    schema_ipc: str
    num_records: int
    category_field: str | None
    prompt_column: str | None
    completion_column: str | None
    messages_column: str | None = None
    column_map: dict[str, str] = field(default_factory=dict)
    role_map: dict[str, str] = field(default_factory=dict)
    revisions: dict[str, str] = field(default_factory=dict)
    """Dataset of the hub -> commit that the job reads, also when the branch has moved on."""

    notices: tuple[str, ...] = ()
    """What was left out of folders, and which splits are read together; see `discovery.notices`."""

    @property
    def names(self) -> ColumnNames:
        """Return the names that the job gives to columns and roles."""
        columns = self.prompt_column, self.completion_column, self.messages_column
        return ColumnNames(*columns, self.column_map, self.role_map)

    @property
    def schema(self) -> pa.Schema:
        """Return the schema of carried columns, unified over all files."""
        return decode_schema(self.schema_ipc)

    @property
    def formats(self) -> dict[str, FormatName]:
        """Return the format of each file with records, by file name."""
        return {self.files[shard.file_index].name: shard.format for shard in self.shards}

    def verify_sources(self, staged: str) -> None:
        """Raise OutputConflictError if a shard reads neither its input file nor a file in `staged`.

        A plan is read from the output, which other users may have changed.
        """
        inputs = [file.uri for file in self.files]
        for shard in self.shards:
            is_input = 0 <= shard.file_index < len(inputs) and shard.uri == inputs[shard.file_index]
            name = file_io.display(shard.uri).rpartition("/")[2]
            allowed = (file_io.join(staged, name), file_io.join(staged, "input", name))  # the second of old versions
            if not is_input and not (STAGED.fullmatch(name) and shard.uri in allowed):
                raise OutputConflictError(
                    f"the plan of this output reads {file_io.display(shard.uri)[:200]}, not an input of the job",
                    "The output was changed. Run the job again with another output.",
                )

    @property
    def digest(self) -> str:
        """Return the SHA-256 of the plan. Workers verify that they read the plan that the driver checked."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def verify_unchanged(self, files_now: Sequence[SourceFile]) -> list[str]:
        """Return the names of files that are new since planning, which this plan does not read.

        Raise DataError if a file of the plan is missing, has changed, or is in another order.
        """
        planned = {file.uri for file in self.files}
        differences = changes(self.files, [file for file in files_now if file.uri in planned])
        if differences:
            more = f"; and {len(differences) - 3} more" if len(differences) > 3 else ""
            what = "; ".join(differences[:3]) + more
            raise DataError(
                f"the input has changed since this job was planned: {what}",
                "Restore the input, or start from scratch with --overwrite or another --output.",
            )
        return [file.name for file in files_now if file.uri not in planned]

    def to_json(self) -> str:
        """Serialize to JSON."""
        return TypeAdapter(Plan).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Deserialize from JSON."""
        return TypeAdapter(Plan).validate_json(text)


def encode_schema(schema: pa.Schema) -> str:
    """Serialize a schema to text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


@functools.lru_cache(maxsize=64)
def decode_schema(text: str) -> pa.Schema:
    """Deserialize a schema."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
