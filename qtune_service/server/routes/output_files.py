"""Serve the files of an output over HTTP from any storage: ranges, strong ETags, and a streamed archive.

The ETag of a file is its SHA-256 if the manifest lists one, else the version that the storage reports. Only files of
the output are served: those in the manifest, and a few by name. Starlette's FileResponse is not used, because outputs
may be on object stores, and its ETags depend on time and size.
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
from qtune_service.output.layout import Output, PartFile, part_files
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.errors import answer
from qtune_service.storage.filesystems import presigned
from qtune_service.storage.folder_io import Span

OTHERS = ("manifest.json", "report.html", "summary_statistics.json", "plane.json")
TYPES = {"parquet": "application/vnd.apache.parquet", "json": "application/json", "html": "text/html; charset=utf-8"}
OTHER = "application/octet-stream"
PRESIGNED_S = 900
BLOCK_BYTES = 1 << 20
"""Block size. A download holds two or three blocks in memory."""
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


@dataclass(frozen=True, slots=True)
class OutputFile:
    """A downloadable file."""

    path: str
    size_bytes: int
    sha256: str | None
    rows: int | None
    output: Output
    stored_etag: str

    @property
    def etag(self) -> str:
        """Return a strong ETag."""
        return f'"{self.sha256 or self.stored_etag}"'

    @property
    def uri(self) -> str:
        """Return the storage URI."""
        return self.output.at(self.path)

    @property
    def media_type(self) -> str:
        """Return the media type by suffix."""
        return TYPES.get(self.path.rpartition(".")[2], OTHER)


@dataclass(frozen=True, slots=True)
class Conditions:
    """Range and conditional headers of a request (RFC 9110)."""

    range: str | None = None
    if_range: str | None = None
    if_none_match: str = ""


def conditions(
    range_: Annotated[str | None, Header(alias="Range", description="One range, such as `bytes=0-999`.")] = None,
    if_range: Annotated[
        str | None, Header(description="ETag. If it does not match, the whole file is returned.")
    ] = None,
    if_none_match: Annotated[str, Header(description="ETags. If one matches, the response is 304.")] = "",
) -> Conditions:
    """Collect the conditional headers of a request."""
    return Conditions(range_, if_range, if_none_match)


Wanted = Annotated[Conditions, Depends(conditions)]


def list_files(finished: FinishedOutput) -> list[OutputFile]:
    """List the files of an output: those in the manifest, the reports, and the tokenizer."""
    listed = [_listed(finished, file) for file in part_files(finished.manifest)]
    unlisted = (*OTHERS, *_tokenizer(finished))
    return [*listed, *(found for path in unlisted if (found := _unlisted(finished, path)) is not None)]


def find_file(finished: FinishedOutput, path: str) -> OutputFile:
    """Find a file of an output. Raises NotFoundError, also for files that do not belong to the output.

    Raises OutputConflictError for a link, so that a writer of the output cannot expose other files.
    """
    for file in part_files(finished.manifest):
        if file.path == path:
            return _checked(_listed(finished, file))
    if (path in OTHERS or path in _tokenizer(finished)) and (found := _unlisted(finished, path)):
        return found
    raise NotFoundError(f"the output has no file {path!r}", "GET .../files lists its files.")


def _tokenizer(finished: FinishedOutput) -> list[str]:
    return [f"tokenizer/{name}" for name in finished.folder.tokenizer_files()]


def _checked(file: OutputFile) -> OutputFile:
    """Return the file if it is regular and has the size in the manifest. Raises OutputConflictError."""
    found = file.output.stat(file.path)
    if found is None or found.size_bytes != file.size_bytes:
        raise OutputConflictError(
            f"{file.path} is missing or has another size than in the manifest",
            "The output was changed. Run the job again.",
        )
    return file


def serve(file: OutputFile, wanted: Conditions, *, is_head: bool, may_redirect: bool = False) -> Response:
    """Respond with a file, a range of it, 304, 416, or a redirect to the object store."""
    common = {"ETag": file.etag, "Accept-Ranges": "bytes", "Cache-Control": "private, no-cache"}
    common["Content-Disposition"] = attachment(file.path.rpartition("/")[2])
    if file.sha256:
        common["X-Checksum-Sha256"] = file.sha256
    if {file.etag, "*"} & set(_tags(wanted.if_none_match)):
        return Response(status_code=304, headers=common)
    if may_redirect and not is_head and (url := _presigned_url(file, common["Content-Disposition"])) is not None:
        return Response(status_code=307, headers={**common, "Location": url, "Cache-Control": "no-store"})
    if wanted.range is None or (wanted.if_range or file.etag) != file.etag:
        return _body(file, 0, file.size_bytes, 200, common, is_head=is_head)
    if (span := _span(wanted.range, file.size_bytes)) is None:
        refusal = answer(
            416, "range_not_satisfiable", f"range {wanted.range!r} is outside of a file of {file.size_bytes} bytes"
        )
        refusal.headers.update({**common, "Content-Range": f"bytes */{file.size_bytes}"})
        return refusal
    start, stop = span
    common["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size_bytes}"
    return _body(file, start, stop, 206, common, is_head=is_head)


def _presigned_url(file: OutputFile, disposition: str) -> str | None:
    overrides = {"response-content-disposition": disposition, "response-content-type": file.media_type}
    return presigned(file.uri, seconds=PRESIGNED_S, answered=overrides)


def attachment(name: str) -> str:
    """Return the Content-Disposition of a download. Any name results in one valid header (RFC 6266)."""
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
    """Return start and stop of a single range; None if it cannot be satisfied."""
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    start = int(first) if first else max(size - int(last), 0)
    stop = min(int(last) + 1, size) if first and last else size
    return (start, stop) if start < stop else None


# --- archive


def archive(finished: FinishedOutput, folders: tuple[str, ...]) -> Iterator[bytes]:
    """Stream a tar of the files in some folders. Memory holds one block."""
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


def _unlisted(finished: FinishedOutput, path: str) -> OutputFile | None:
    found = finished.folder.stat(path)
    return None if found is None else OutputFile(path, found.size_bytes, None, None, finished.folder, found.version)
