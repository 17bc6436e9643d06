"""Write a small file on a condition: that it does not exist, or that nobody has replaced it since it was read.

Of two writers with the same condition one succeeds, whatever the order in which their requests arrive. Filesystems of
pyarrow have no conditions, so each kind of storage has its own way:

    local    link(2), which fails where the name exists. There is no condition for replacing.
    s3://    a signed PUT with `If-None-Match: *` or `If-Match: ETAG`, by the keys of aws_keys.py
    gs://    an upload with `ifGenerationMatch`, by the default credentials of google-auth

Other storage, and stores that refuse the header, raise NoConditionError. A store that ignores the header is found by
`are_kept`.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias
from urllib.parse import quote

from qtune_service.storage import file_io
from qtune_service.storage.filesystems import Location, TransientError, explain, presigned, resolve, retrying

if TYPE_CHECKING:
    import httpx

ABSENT = ""
"""Version of a file that does not exist."""
SIGNED_S = 300
GOOGLE_ENDPOINT, GOOGLE_EMULATOR = "https://storage.googleapis.com", "CLOUD_STORAGE_EMULATOR_ENDPOINT"
GOOGLE_SCOPE = "https://www.googleapis.com/auth/devstorage.read_write"

NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""Errors of link(2) on filesystems without hard links."""

Respond: TypeAlias = "Callable[[], httpx.Response]"


class NoConditionError(Exception):
    """The storage has no conditional writes, or this process has no credentials to request one."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file and its version."""

    body: bytes
    version: str


class _Store(Protocol):
    """Conditional requests to one kind of object store."""

    def read(self) -> Respond:
        """Return a request for the file."""
        ...

    def write(self, body: bytes, version: str) -> Respond:
        """Return a request that writes the file if it has the version."""
        ...

    def version_of(self, response: httpx.Response) -> str:
        """Return the version in the response to a read or a write."""
        ...


def create(uri: str, body: bytes) -> bool:
    """Write a file unless it exists, and return whether it was written. Without conditions, replace it."""
    try:
        return write_if(uri, body, ABSENT) is not None
    except NoConditionError:
        file_io.write_bytes(uri, body)
        return True


def write_if(uri: str, body: bytes, version: str) -> str | None:
    """Write a file if it has a version, and return its new one. Return None where it has another version.

    Raise NoConditionError where the storage cannot do that, and StorageError where it fails.
    """
    at = resolve(uri)
    if at.is_local:
        return _link(at, body, version)
    store, attempts = _store_of(uri, at), 0

    def attempt() -> httpx.Response:
        nonlocal attempts
        attempts += 1
        return _checked(store.write(body, version)(), uri, missing_is_conflict=version != ABSENT)

    response = retrying(uri, "write", attempt)
    if response.is_success:
        return store.version_of(response)
    if attempts > 1:  # the response to an earlier attempt may be lost, and the write done
        found = read(uri)
        return found.version if found is not None and found.body == body else None
    return None


def read(uri: str) -> Found | None:
    """Return a file with its version, None if it does not exist. Raise as `write_if` does."""
    at = resolve(uri)
    if at.is_local:
        raise NoConditionError
    store = _store_of(uri, at)
    response = retrying(uri, "read", lambda: _checked(store.read()(), uri, missing_is_conflict=True))
    return Found(response.content, store.version_of(response)) if response.is_success else None


def are_kept(uri: str, body: bytes) -> bool:
    """Return whether the storage keeps to conditions. The file exists, and its content is `body`."""
    return write_if(uri, body, ABSENT) is None


# --- local


def _link(at: Location, body: bytes, version: str) -> str | None:
    if version != ABSENT:
        raise NoConditionError
    path = Path(at.path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file_io.write_synced(temporary, body)
        os.link(temporary, path)
        file_io.sync_folder(path.parent)
    except FileExistsError:
        return None
    except OSError as error:
        if error.errno in NO_LINKS:
            raise NoConditionError from error
        raise explain(error, at.uri, "write") from error
    finally:
        temporary.unlink(missing_ok=True)
    return "linked"


# --- object stores


@functools.lru_cache(maxsize=1)
def _client() -> httpx.Client:
    import httpx

    return httpx.Client(timeout=httpx.Timeout(60, connect=10))


def _checked(response: httpx.Response, uri: str, *, missing_is_conflict: bool) -> httpx.Response:
    """Return a response that is a success or says that the condition failed. Raise for others."""
    status = response.status_code
    if response.is_success or status == HTTPStatus.PRECONDITION_FAILED:
        return response
    if status == HTTPStatus.NOT_FOUND and missing_is_conflict:
        return response
    if status in (HTTPStatus.CONFLICT, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS) or (
        status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_IMPLEMENTED
    ):
        raise TransientError(f"cannot write {file_io.display(uri)}: HTTP {status}")
    raise NoConditionError(f"HTTP {status}")  # the unconditional request reports the cause


def _send(method: str, url: str, headers: Mapping[str, str], body: bytes | None = None) -> Respond:
    def respond() -> httpx.Response:
        import httpx

        try:
            return _client().request(method, url, headers=dict(headers), content=body)
        except httpx.HTTPError as error:
            raise TransientError(f"{type(error).__name__}: {error}") from error

    return respond


def _store_of(uri: str, at: Location) -> _Store:
    scheme = uri.partition("://")[0].lower()
    if scheme in ("s3", "s3a", "s3n"):
        return _S3(uri)
    if scheme in ("gs", "gcs"):
        return _Google(at.path)
    raise NoConditionError


@dataclass(frozen=True, slots=True)
class _S3:
    uri: str

    def read(self) -> Respond:
        return _send("GET", self._url("GET"), {})

    def write(self, body: bytes, version: str) -> Respond:
        condition = {"If-None-Match": "*"} if version == ABSENT else {"If-Match": version}
        return _send("PUT", self._url("PUT"), condition, body)

    def version_of(self, response: httpx.Response) -> str:
        return str(response.headers.get("etag", ""))

    def _url(self, method: str) -> str:
        url = presigned(self.uri, seconds=SIGNED_S, method=method, may_use_role=True)
        if url is None:
            raise NoConditionError
        return url


@dataclass(frozen=True, slots=True)
class _Google:
    path: str
    """BUCKET/KEY."""

    def read(self) -> Respond:
        bucket, key = self._names()
        return _send("GET", f"{_google_endpoint()}/storage/v1/b/{bucket}/o/{key}?alt=media", _google_headers())

    def write(self, body: bytes, version: str) -> Respond:
        bucket, key = self._names()
        query = f"uploadType=media&name={key}&ifGenerationMatch={version or 0}"
        return _send("POST", f"{_google_endpoint()}/upload/storage/v1/b/{bucket}/o?{query}", _google_headers(), body)

    def version_of(self, response: httpx.Response) -> str:
        named = response.headers.get("x-goog-generation")
        return str(json.loads(response.content)["generation"] if named is None else named)

    def _names(self) -> tuple[str, str]:
        bucket, _, key = self.path.partition("/")
        return quote(bucket, safe=""), quote(key, safe="")


def _google_endpoint() -> str:
    return os.environ.get(GOOGLE_EMULATOR, GOOGLE_ENDPOINT).rstrip("/")


def _google_headers() -> dict[str, str]:
    if os.environ.get(GOOGLE_EMULATOR):
        return {}
    try:
        from google.auth.transport.requests import Request

        credentials = _google_credentials()
        if not credentials.valid:
            credentials.refresh(Request())
    except Exception as error:  # an edge: google-auth is missing, or has no credentials here
        raise NoConditionError from error
    return {"Authorization": f"Bearer {credentials.token}"}


@functools.lru_cache(maxsize=1)
def _google_credentials() -> Any:
    import google.auth

    credentials, _project = google.auth.default(scopes=[GOOGLE_SCOPE])
    return credentials
