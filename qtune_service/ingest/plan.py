"""What a plan is: files, chunks to scan, what a scan found, shards to read. Plain data that goes through JSON.

A chunk is a piece of an input file before anybody has read it; a shard is a piece of which everything is known: exact
bytes or rows, absolute line numbers, a digest, and which of its records the job wants. So every shard can be read
alone, anywhere, any number of times, with the same result.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pydantic import TypeAdapter

from qtune_service.config import FormatName
from qtune_service.errors import DataError, OutputConflictError
from qtune_service.ingest.discovery import SourceFile, changes
from qtune_service.storage import file_io

STAGED = re.compile(r"\d{4,9}-\d{5,9}\.jsonl", re.ASCII)
"""Names of staged chunks; see `staged_name`."""


def staged_name(file_index: int, number: int) -> str:
    """Return the name of a staged chunk: piece `number` of an input file."""
    return f"{file_index:04d}-{number:05d}.jsonl"


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of scan work: bytes of a JSONL file, rows of a Parquet file, or a whole file that must be staged."""

    index: int
    file_index: int
    file: SourceFile
    start: int
    stop: int
    shard_bytes: int
    """Size of the pieces that staging writes."""

    def to_json(self) -> str:
        """Serialise."""
        return TypeAdapter(Chunk).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Chunk:
        """Deserialise."""
        return TypeAdapter(Chunk).validate_json(text)


@dataclass(frozen=True, slots=True)
class Piece:
    """What will be one shard: exact bytes [start, stop) of whole lines, or rows. Lines are counted, blank ones too."""

    uri: str
    start: int
    stop: int
    num_lines: int
    num_records: int
    """Lines that are not blank; whether they can be parsed shows when they are read."""
    digest: str
    """SHA-256 of the bytes; empty for Parquet, whose file version is checked instead."""
    categories: dict[str, int]
    """Records of each category that the job takes from."""


@dataclass(frozen=True, slots=True)
class ChunkScan:
    """What was found in a chunk."""

    index: int
    file_index: int
    pieces: tuple[Piece, ...]
    schema_ipc: str
    """The merged Arrow schema of its records, not final yet; see `schema.finish`."""
    format: FormatName | None
    keys: tuple[str, ...]
    """Columns of its first good records."""
    categories_seen: tuple[str, ...]
    first_problem: str

    @property
    def schema(self) -> pa.Schema:
        """The chunk's schema."""
        return decode_schema(self.schema_ipc)

    def to_json(self) -> str:
        """Serialise."""
        return TypeAdapter(ChunkScan).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> ChunkScan:
        """Deserialise."""
        return TypeAdapter(ChunkScan).validate_json(text)


@dataclass(frozen=True, slots=True)
class Shard:
    """A unit of work: read, scored and written at once."""

    index: int
    file_index: int
    uri: str
    kind: Literal["jsonl", "parquet"]
    format: FormatName
    start: int
    stop: int
    first_line: int
    """Line (JSON lines), record (JSON arrays) or row (Parquet) of the source file, from 1."""
    digest: str
    num_records: int
    """Records that the job reads of it."""
    take: dict[str, int] | None
    """With categories: how many of each it takes, its first ones."""
    limit: int | None
    """It stops after so many records."""


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

    @property
    def schema(self) -> pa.Schema:
        """The records' own columns, unified over all files."""
        return decode_schema(self.schema_ipc)

    @property
    def formats(self) -> dict[str, FormatName]:
        """Format of each file that has records, by its name."""
        return {self.files[shard.file_index].name: shard.format for shard in self.shards}

    def verify_places(self, staged: str) -> None:
        """Raise OutputConflictError where a shard is to be read from elsewhere than its input file or `staged`.

        A plan is read back from the output, where others may have written to it.
        """
        inputs = [file.uri for file in self.files]
        for shard in self.shards:
            is_input = 0 <= shard.file_index < len(inputs) and shard.uri == inputs[shard.file_index]
            name = file_io.display(shard.uri).rpartition("/")[2]
            places = (file_io.join(staged, name), file_io.join(staged, "input", name))  # the second of old versions
            if not is_input and not (STAGED.fullmatch(name) and shard.uri in places):
                raise OutputConflictError(
                    f"the plan of this output reads {file_io.display(shard.uri)[:200]}, which is no input of the job",
                    "Somebody changed the output. Run the job again with another output.",
                )

    @property
    def digest(self) -> str:
        """SHA-256 of the plan, by which a worker knows that it reads the one that its driver checked."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def verify_unchanged(self, files_now: Sequence[SourceFile]) -> None:
        """Raise DataError where the input is not what was planned."""
        told = changes(self.files, files_now)
        if told:
            what = "; ".join(told[:3]) + (f"; and {len(told) - 3} more" if len(told) > 3 else "")
            raise DataError(
                f"the input has changed since this job was planned: {what}",
                "Bring the input back as it was, or start anew with --overwrite or another --output.",
            )

    def to_json(self) -> str:
        """Serialise."""
        return TypeAdapter(Plan).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        """Deserialise."""
        return TypeAdapter(Plan).validate_json(text)


def encode_schema(schema: pa.Schema) -> str:
    """A schema as text."""
    return base64.b64encode(schema.serialize().to_pybytes()).decode()


@functools.lru_cache(maxsize=64)
def decode_schema(text: str) -> pa.Schema:
    """The schema that `encode_schema` wrote."""
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
