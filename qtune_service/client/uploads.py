"""Uploading a dataset: read twice, first for its SHA-256, by which the server checks what it got, then to be sent."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import httpx

from qtune_service.client.answers import error_of
from qtune_service.client.part import BLOCK_BYTES
from qtune_service.client.transfers import Counter, Watcher
from qtune_service.client.transport import Connection
from qtune_service.errors import DataError


def upload(connection: Connection, path: Path, name: str | None, watcher: Watcher | None) -> httpx.Response:
    """The server's answer. Sent again only where it never arrived: twice sent would be two datasets."""
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            size_bytes = file.tell()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}", "Give the path of a file on this machine.") from error
    headers = {"Content-Length": str(size_bytes), "X-Checksum-Sha256": sha256}
    params = {"name": name or path.name}
    with connection.translated():
        for attempt in connection.attempts(may_repeat=False):
            with attempt:
                counter = Counter(1, size_bytes, watcher)
                content = _blocks(path, counter)
                response = connection.send("POST", "/datasets", params=params, headers=headers, content=content)
    if not response.is_success:
        raise error_of(response)
    counter.add(0, files=1)
    return response


def _blocks(path: Path, counter: Counter) -> Iterator[bytes]:
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block
            counter.add(len(block))
