"""Files of an output over HTTP, from any storage: ranges, strong ETags, and an archive without a temporary file.

A file's ETag is its SHA-256 where the manifest has it, else what the storage says of it. Only what belongs to the
output is served: files that the manifest lists, and a few by name.
"""

from __future__ import annotations

import re
import tarfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated
from urllib.parse import quote

from fastapi import Depends, Header, Response
from fastapi.responses import StreamingResponse

from qtune_service.errors import NotFoundError, OutputConflictError
from qtune_service.output.file_lists import PartFile, part_files
from qtune_service.output.layout import Output
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.errors import answer
from qtune_service.storage.folder_io import Span
from qtune_service.storage.presign import presigned

OTHERS = ("manifest.json", "report.html", "summary_statistics.json", "plane.json")
TYPES = {"parquet": "application/vnd.apache.parquet", "json": "application/json", "html": "text/html; charset=utf-8"}
OTHER = "application/octet-stream"
PRESIGNED_S = 900
BLOCK_BYTES = 1 << 20
"""Read and sent at a time; a download holds two or three of them."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A file that may be downloaded."""

    path: str
    size_bytes: int
    sha256: str | None
    rows: int | None
    output: Output
    stored_etag: str

    @property
    def etag(self) -> str:
        """Strong: another content has another."""
        return f'"{self.sha256 or self.stored_etag}"'

    @property
    def uri(self) -> str:
        """Where it is stored."""
        return self.output.at(self.path)

    @property
    def media_type(self) -> str:
        """By the ending of its name."""
        return TYPES.get(self.path.rpartition(".")[2], OTHER)


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a client wants of a file, by the headers of HTTP (RFC 9110)."""

    range: str | None = None
    if_range: str | None = None
    if_none_match: str = ""


def conditions(
    range_: Annotated[str | None, Header(alias="Range", description="As `bytes=0-999`; one range only.")] = None,
    if_range: Annotated[str | None, Header(description="An ETag: the range only of this content, else all.")] = None,
    if_none_match: Annotated[str, Header(description="ETags: nothing where it is one of these.")] = "",
) -> Conditions:
    """From a request."""
    return Conditions(range_, if_range, if_none_match)


Wanted = Annotated[Conditions, Depends(conditions)]


def list_files(finished: FinishedOutput) -> list[OutputFile]:
    """All files of an output: what the manifest lists, and what is beside it."""
    listed = [_listed(finished, file) for file in part_files(finished.manifest)]
    beside = (*OTHERS, *_tokenizer(finished))
    return [*listed, *(found for path in beside if (found := _beside(finished, path)) is not None)]


def find_file(finished: FinishedOutput, path: str) -> OutputFile:
    """One of them. Raises NotFoundError, also for what exists but is not the output's to give.

    Raises OutputConflictError for a link: whoever can write there cannot make the server give away other files.
    """
    for file in part_files(finished.manifest):
        if file.path == path:
            return _checked(_listed(finished, file))
    if (path in OTHERS or path in _tokenizer(finished)) and (found := _beside(finished, path)):
        return found
    raise NotFoundError(f"the output has no file {path!r}", "GET .../files lists those that it has.")


def _tokenizer(finished: FinishedOutput) -> list[str]:
    return [f"tokenizer/{name}" for name in finished.folder.tokenizer_files()]


def _checked(file: OutputFile) -> OutputFile:
    """The file, where it is a regular one inside the output and as large as the manifest says."""
    found = file.output.stat(file.path)
    if found is None or found.size_bytes != file.size_bytes:
        raise OutputConflictError(
            f"{file.path} is not there as the manifest lists it", "Somebody changed the output. Run the job again."
        )
    return file


def serve(file: OutputFile, wanted: Conditions, *, is_head: bool, may_redirect: bool = False) -> Response:
    """A file, a range of it, that it has not changed, or where the store itself gives it."""
    common = {"ETag": file.etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    common["Content-Disposition"] = attachment(file.path.rpartition("/")[2])
    if file.sha256:
        common["X-Checksum-Sha256"] = file.sha256
    if {file.etag, "*"} & set(_tags(wanted.if_none_match)):
        return Response(status_code=304, headers=common)
    if may_redirect and not is_head and (url := _at_the_store(file, common["Content-Disposition"])) is not None:
        return Response(status_code=307, headers={**common, "Location": url, "Cache-Control": "no-store"})
    if wanted.range is None or (wanted.if_range or file.etag) != file.etag:
        return _body(file, 0, file.size_bytes, 200, common, is_head=is_head)
    if (span := _span(wanted.range, file.size_bytes)) is None:
        refusal = answer(416, "range_not_satisfiable", f"a file of {file.size_bytes} bytes has no {wanted.range!r}")
        refusal.headers.update({**common, "Content-Range": f"bytes */{file.size_bytes}"})
        return refusal
    start, stop = span
    common["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    return _body(file, start, stop, 206, common, is_head=is_head)


def _at_the_store(file: OutputFile, disposition: str) -> str | None:
    answered = {"response-content-disposition": disposition, "response-content-type": file.media_type}
    return presigned(file.uri, seconds=PRESIGNED_S, answered=answered)


def attachment(name: str) -> str:
    """The header that names a download; whatever the name is, it stays one header and one name (RFC 6266)."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)
    return f'attachment; filename="{plain}"' + ("" if plain == name else f"; filename*=UTF-8''{quote(name, safe='')}")


def _body(file: OutputFile, start: int, stop: int, status: int, headers: dict[str, str], *, is_head: bool) -> Response:
    headers["Content-Length"] = str(stop - start)
    if is_head:
        return Response(status_code=status, headers=headers, media_type=file.media_type)
    blocks = file.output.blocks(file.path, span=Span(start, stop, BLOCK_BYTES))
    return StreamingResponse(blocks, status_code=status, headers=headers, media_type=file.media_type)


def _tags(header: str) -> list[str]:
    return [tag.strip().removeprefix("W/") for tag in header.split(",")]


def _span(header: str, size: int) -> tuple[int, int] | None:
    """First and last-plus-one byte of a single range; None where it cannot be met."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    return (start, stop) if start < stop else None


# --- archive


def archive(finished: FinishedOutput, folders: tuple[str, ...]) -> Iterator[bytes]:
    """A tar of the output's files in some folders, as it is read: nothing is held but a block."""
    return _tar([_checked(file) for file in list_files(finished) if file.path.startswith(folders)])


def _tar(files: Sequence[OutputFile]) -> Iterator[bytes]:
    for file in files:
        info = tarfile.TarInfo(file.path)
        info.size, info.mode, info.mtime = file.size_bytes, 0o644, int(time.time())
        yield info.tobuf(tarfile.PAX_FORMAT)
        yield from file.output.blocks(file.path, span=Span(0, file.size_bytes, BLOCK_BYTES))
        yield b"\0" * (-file.size_bytes % tarfile.BLOCKSIZE)
    yield b"\0" * (2 * tarfile.BLOCKSIZE)


def _listed(finished: FinishedOutput, file: PartFile) -> OutputFile:
    return OutputFile(file.path, file.size_bytes, file.sha256, file.rows, finished.folder, file.sha256)


def _beside(finished: FinishedOutput, path: str) -> OutputFile | None:
    found = finished.folder.stat(path)
    return None if found is None else OutputFile(path, found.size_bytes, None, None, finished.folder, found.version)
