"""The output folder of a job: its layout, its owner, and its finished shards.

    OUT/_qtune/job.json            the spec of the job that owns this output, written first
    OUT/_qtune/plan.json           the shards, planned once
    OUT/_qtune/scanned/            scans of chunks, until the plan is made
    OUT/_qtune/input/              staged shards of inputs that cannot be read from the middle
    OUT/_qtune/<stage>/00000.json  one marker per shard, written after the shard's files
    OUT/_qtune/partial/00000.arrow scores of a shard that was in progress when the job was stopped
    OUT/_qtune/lock                the lock of the driver: a file lock, or on an object store a lease
    OUT/_qtune/ranks/              labels and ranks of a population too large for the driver
    OUT/_qtune/tokenizer.json      the names of the files in tokenizer/, written before them
    OUT/_qtune/adopted.json        the score shards taken from another output, written before them
    OUT/_qtune/progress.json       progress, for clients that follow the job
    OUT/_qtune/lease               beside the lock, on a filesystem that machines share
    OUT/scores|quadrants|pruned|rejected/part-00000-1f0e2d3c.parquet
    OUT/tokenizer/, summary_statistics.json, plane.json, report.html
    OUT/manifest.json              written last: the output is complete

A shard is finished when its marker exists. Its files are written before, each atomically, so a crash in between costs
only the work on that shard. The name of a shard's file ends with the first digits of its SHA-256, so attempts at a
shard, which on a GPU may differ in bits, never write to one name. The first marker that is written counts, and it names
the files of its attempt. Files of other attempts are removed before the manifest is written. Readers find a shard's
files in its marker or in the manifest. Earlier versions wrote `part-00000.parquet`.

Other users who can write to an output can also write manifests and markers. So their file lists are validated here:
every shard file is `FOLDER/part-NNNNN-DIGITS.parquet`. `Output.at` and `storage/folder_io.py` check paths again, after
links, where they are used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtune_service import __version__
from qtune_service.config import JobSpec
from qtune_service.errors import OutputConflictError
from qtune_service.storage import file_io, folder_io
from qtune_service.storage.conditional import create
from qtune_service.storage.confined import Root
from qtune_service.storage.lease import end_process, locked

PART_FOLDERS = ("scores", "quadrants", "pruned", "rejected")
PART_NAME = r"part-(\d{5,9})(?:-[0-9a-f]{8})?\.parquet"
"""Pattern of the names of shard files."""
_PART = re.compile(rf"({'|'.join(PART_FOLDERS)})/{PART_NAME}", re.ASCII)


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
    path: str
    """Path below the output."""

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as a manifest has it."""
        return {"path": self.path, "rows": self.rows, "bytes": self.size_bytes, "sha256": self.sha256}


def part_path(folder: str, shard: int, sha256: str = "") -> str:
    """Return the path of a shard's file below its output: by its content, or the one that earlier versions gave it."""
    return f"{folder}/part-{shard:05}{'-' if sha256 else ''}{sha256[:8]}.parquet"


def part_files(listed: Mapping[str, Any], *folders: str) -> list[PartFile]:
    """Return the files of a manifest or marker: of some folders, or of all.

    Raise OutputConflictError for an entry that this package does not write.
    """
    entries = listed.get("files")
    if not isinstance(entries, list):
        raise damaged("it lists no files")
    files = [_part_file(entry) for entry in entries]
    return [file for file in files if not folders or file.folder in folders]


def paths_by_shard(files: Iterable[PartFile]) -> dict[int, str]:
    """Return the path of each shard's file in one folder."""
    return {file.shard: file.path for file in files}


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
    names = () if match is None else (part_path(match[1], int(match[2]), digest) for digest in (checked.sha256, ""))
    if match is None or checked.path not in names:
        raise damaged(f"it lists {checked.path!r}, which is not a shard file")
    return PartFile(match[1], int(match[2]), checked.bytes, checked.sha256, checked.rows, checked.path)


def damaged(what: str) -> OutputConflictError:
    """Return the error for a manifest or marker that was changed."""
    return OutputConflictError(
        f"the output's manifest is not valid: {what}", "It was changed. Run the job again with another output."
    )


FOLDERS = (*PART_FOLDERS, "tokenizer", "_qtune")
FILES = ("manifest.json", "summary_statistics.json", "plane.json", "report.html")
NAMED_TEMPLATES = "additional_chat_templates"
"""Folder in `tokenizer/` for tokenizers with several chat templates, as transformers writes it."""
JOB_VARIABLE = "QTUNE_JOB"
"""Environment variable of drivers that a server starts: JOB:ATTEMPT."""
MAX_FILE_BYTES = 256 << 20
"""Largest size of a JSON file or page of an output: some 100 bytes for each of two million shards."""


@dataclass(frozen=True, slots=True)
class Output:
    """Paths below one output folder, local or on an object store.

    Files are read only where they are really inside it, after links: see `storage/folder_io.py`.
    """

    root: str
    may_be_link: bool = True
    """Whether the folder itself may be a symbolic link. A server sets False: others can write to its outputs."""

    @property
    def _inside(self) -> Root:
        return Root(self.root, self.may_be_link)

    def at(self, *parts: str) -> str:
        """Return the URI of a path below the output. Raise OutputConflictError for a path that is not plain."""
        return folder_io.uri_of(self._inside, *parts)

    # --- reading

    def stat(self, *parts: str) -> file_io.Entry | None:
        """Return size and version of a file, None if it does not exist. Raise OutputConflictError for a link."""
        return folder_io.stat(self._inside, *parts)

    def read_bytes(self, *parts: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Read a whole file. Raise OutputConflictError for a link, another kind of file, or one over `max_bytes`."""
        return folder_io.read_bytes(self._inside, *parts, max_bytes=max_bytes)

    def read_json(self, *parts: str, max_bytes: int = MAX_FILE_BYTES) -> Any:
        """Parse a JSON file. Raise as `read_bytes` does, and StorageError for invalid JSON."""
        return folder_io.read_json(self._inside, *parts, max_bytes=max_bytes)

    def read_object(self, *parts: str, max_bytes: int = MAX_FILE_BYTES) -> dict[str, Any] | None:
        """Parse a JSON object. Return None if the file does not exist, raise OutputConflictError for other JSON."""
        if self.stat(*parts) is None:
            return None
        body = self.read_json(*parts, max_bytes=max_bytes)
        if not isinstance(body, dict):
            raise damaged(f"{'/'.join(parts)} is not a JSON object")
        return body

    def blocks(self, *parts: str, span: folder_io.Span = folder_io.WHOLE) -> Iterator[bytes]:
        """Stream the bytes of a file."""
        return folder_io.blocks(self._inside, *parts, span=span)

    def open_part(self, path: str) -> contextlib.AbstractContextManager[pq.ParquetFile]:
        """Open a shard's Parquet file by its path below the output."""
        return folder_io.open_parquet(self._inside, path)

    def read_part(self, path: str, columns: list[str] | None = None) -> pa.Table:
        """Read a shard's Parquet file by its path below the output."""
        with self.open_part(path) as file:
            return file.read(columns=columns)

    def list_files(self, *parts: str) -> list[str]:
        """Return the names of the files in a folder of the output."""
        return folder_io.list_files(self._inside, *parts)

    # --- writing

    def write_part(self, folder: str, shard: int, table: pa.Table) -> PartFile:
        """Write a shard's Parquet file under the name of its content."""
        body = file_io.table_bytes(table)
        sha256 = hashlib.sha256(body).hexdigest()
        path = part_path(folder, shard, sha256)
        file_io.write_bytes(self.at(path), body)
        return PartFile(folder, shard, body.size, sha256, table.num_rows, path)

    # --- taking over files

    def record(self, what: str, names: list[str]) -> None:
        """Record the files that are about to be written, so that their removal can find them."""
        file_io.write_json(self.at("_qtune", f"{what}.json"), {"files": names})

    def adopt(self, origin: Output, path: str) -> None:
        """Link or copy a file of another output to the same path in this one.

        Raise OutputConflictError for a path that leads out of either output.
        """
        folder_io.link_or_copy(origin._inside, self._inside, path)

    # --- removing

    def remove_file(self, *parts: str) -> None:
        """Remove a file, or a link itself, if it exists."""
        folder_io.remove_file(self._inside, *parts)

    def remove_folder_if_empty(self, *parts: str) -> None:
        """Remove a folder if it exists and is empty."""
        folder_io.remove_folder_if_empty(self._inside, *parts)

    # --- manifest

    def tokenizer_files(self) -> list[str]:
        """Return the paths of the tokenizer's files below `tokenizer/`."""
        named = self.list_files("tokenizer", NAMED_TEMPLATES)
        return [*self.list_files("tokenizer"), *(f"{NAMED_TEMPLATES}/{name}" for name in named)]

    @property
    def manifest(self) -> dict[str, Any] | None:
        """Return the manifest, None while the output is not complete."""
        return self.read_object("manifest.json")

    def require_manifest(self) -> dict[str, Any]:
        """Return the manifest. Raise OutputConflictError for an output that is not complete."""
        if (manifest := self.manifest) is not None:
            return manifest
        started = self.stat("_qtune", "job.json") is not None
        if started:
            what, hint = "holds an unfinished job", "Run its command again to resume it."
        else:
            what, hint = "is not an output of qtune", "Pass the --output folder of a job."
        raise OutputConflictError(f"{self.root} {what}", hint)

    # --- markers

    def mark(self, stage: str, shard: int, record: dict[str, Any]) -> dict[str, Any]:
        """Write the marker of a finished shard of a stage, and return the one that counts.

        A marker that another attempt has written stays, where the storage has conditional writes.
        """
        if create(self.at("_qtune", stage, f"{shard:05}.json"), json.dumps(record).encode()):
            return record
        return self.marker(stage, shard) or record

    def marker(self, stage: str, shard: int) -> dict[str, Any] | None:
        """Return a shard's marker, None while the shard is not finished in a stage."""
        return self.read_object("_qtune", stage, f"{shard:05}.json")

    def finished(self, stage: str) -> dict[int, dict[str, Any]]:
        """Return the markers of a stage by shard."""
        found = self._numbered(stage, "json")
        with ThreadPoolExecutor(16) as pool:
            bodies = pool.map(lambda name: self.read_json("_qtune", stage, name), found.values())
            return dict(zip(found, bodies, strict=True))

    def marked(self, stage: str) -> frozenset[int]:
        """Return the shards that have a marker of a stage."""
        return frozenset(self._numbered(stage, "json"))

    def _numbered(self, folder: str, ending: str) -> dict[int, str]:
        """Return the files 00000.ENDING of a working folder by number, without half-written ones that a crash left."""
        matches = (re.fullmatch(rf"(\d+)\.{ending}", name) for name in self.list_files("_qtune", folder))
        return {int(match[1]): match[0] for match in matches if match}

    def partial_uri(self, shard: int) -> str:
        """Return the URI of the partial scores of a shard, which a stopped job saves."""
        return self.at("_qtune", "partial", f"{shard:05}.arrow")

    def read_partial(self, shard: int) -> bytes:
        """Read the partial scores of a shard."""
        return self.read_bytes("_qtune", "partial", f"{shard:05}.arrow", max_bytes=1 << 40)

    def partials(self) -> frozenset[int]:
        """Return the shards with partial scores."""
        return frozenset(self._numbered("partial", "arrow"))

    def note_progress(self, body: bytes) -> None:
        """Write progress.json."""
        file_io.write_bytes(self.at("_qtune", "progress.json"), body)

    # --- ownership

    def check_owner(self, spec: JobSpec) -> None:
        """Raise OutputConflictError if this output belongs to a job with another spec."""
        owner = self.read_object("_qtune", "job.json")
        if owner is not None and _defining(owner) != spec.defining():
            raise self._belongs_to_another(spec, owner)

    def claim(self, spec: JobSpec, model_fingerprint: str, earlier_fingerprint: str = "") -> None:
        """Claim this output for a spec. Raise OutputConflictError if the folder holds anything else.

        earlier_fingerprint: that of the same model by the rule of earlier versions, accepted too.
        """
        owner = self.read_object("_qtune", "job.json")
        if owner is not None:
            known = (model_fingerprint, earlier_fingerprint or model_fingerprint)
            if _defining(owner) != spec.defining() or owner.get("model_fingerprint") not in known:
                raise self._belongs_to_another(spec, owner)
            return
        foreign = [name for name in self.list_files() if not name.startswith(".")]
        foreign += [f"{name}/" for name in FOLDERS if name != "_qtune" and file_io.is_folder(self.at(name))]
        if foreign:
            raise OutputConflictError(
                f"{self.root} is not empty and not an output of qtune: it contains {foreign[0]}",
                "Choose another --output, or pass --overwrite to replace an earlier output there. "
                "Files that qtune did not write are never removed.",
            )
        body = {
            "fingerprint": spec.fingerprint(),
            "defining": spec.defining(),
            "model_fingerprint": model_fingerprint,
            "version": __version__,
            "job": os.environ.get(JOB_VARIABLE, "").partition(":")[0],
            "spec": spec.model_dump(mode="json"),
        }
        if not create(self.at("_qtune", "job.json"), file_io.json_bytes(body)):
            self.claim(spec, model_fingerprint)  # another driver has claimed it meanwhile

    def owner(self) -> JobSpec | None:
        """Return the spec of the job that owns this output, None without one.

        Raise OutputConflictError for a damaged record.
        """
        record = self.read_object("_qtune", "job.json") or self.manifest
        if record is None:
            return None
        try:
            return JobSpec.model_validate(record.get("spec"))
        except ValidationError:
            raise damaged("its spec is not valid") from None

    def owning_job(self) -> str | None:
        """Return the id of the server's job that began this output, empty for a command's job, None if unknown.

        Earlier versions did not record it.
        """
        job = (self.read_object("_qtune", "job.json") or {}).get("job")
        return job if isinstance(job, str) else None

    def _belongs_to_another(self, spec: JobSpec, owner: dict[str, Any]) -> OutputConflictError:
        differing = _differences(_defining(owner), spec.defining()) or ["the files of the model"]
        return OutputConflictError(
            f"{self.root} belongs to another job, which differs in {', '.join(differing)}",
            "Choose another --output, or pass --overwrite to start from scratch. "
            "To change only the ratios, reuse its scores:\n"
            f"  qtune prune --from-scores {self.root} --output NEW --sample-keep-ratio R",
        )

    @contextlib.contextmanager
    def locked(
        self, say: Callable[[str], None] = lambda _: None, on_lost: Callable[[], None] = end_process
    ) -> Iterator[None]:
        """Hold the driver's lock, which excludes a second driver. A local lock ends with the process in every case.

        on_lost: called when the lease of an object store is lost. By default it ends this process, as a driver must.
        """
        with locked(self.at("_qtune", "lock"), self.at("_qtune", "lease"), self.root, say, on_lost):
            yield


def _defining(owner: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the fields that decide a recorded job's result; None if unreadable. Earlier versions recorded the spec."""
    if isinstance(recorded := owner.get("defining"), dict):
        return recorded
    try:
        return JobSpec.model_validate(owner.get("spec")).defining()
    except ValidationError:
        return None


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Return the dotted names of the fields that differ, with their values. None is the default."""
    if isinstance(before or now, dict) and isinstance(now or before, dict):
        before, now = before or {}, now or {}
        return [d for n in sorted({*before, *now}) for d in _differences(before.get(n), now.get(n), f"{prefix}{n}.")]
    return [] if before == now else [f"{prefix[:-1]} ({before!r} there, {now!r} here)"]
