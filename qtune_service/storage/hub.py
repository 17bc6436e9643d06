"""Read dataset repositories of the Hugging Face hub through the filesystem of `huggingface_hub`.

Files are read by byte ranges. A file's metadata takes one request, not a listing of its folder. hub_errors.py
translates failures.

The library reads the token (HF_TOKEN, or the file that `hf auth login` writes) for each request, and sends it to the
endpoint only (HF_ENDPOINT), not to the storage that the endpoint redirects to. This module never holds it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NoReturn, cast

import pyarrow.fs as pafs
from huggingface_hub import HfFileSystem
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.hf_file_system import HfFileSystemFile

from qtune_service.errors import StorageError
from qtune_service.storage.hub_errors import api, endpoint, translated
from qtune_service.storage.hub_uri import COMMIT, HubUri

READ_AHEAD_BYTES = 64 << 10
"""Bytes that are read behind a requested range: several small column chunks take one request."""
TIMEOUT_S = 30.0


def filesystem() -> pafs.FileSystem:
    """Return the filesystem of all repositories."""
    make = cast("Callable[[Any], pafs.FileSystemHandler]", _Handler)  # its stubs lack methods
    return pafs.PyFileSystem(make(_files()))


def find_commit(uri: HubUri) -> str:
    """Return the commit that a revision points to now. Raise StorageError and TransientError."""
    with translated(uri.root):
        found = api().dataset_info(uri.repository, revision=uri.revision, expand=["sha"], timeout=TIMEOUT_S)
        if found.sha is not None:
            return found.sha
    raise StorageError(f"cannot read {uri.root}: {endpoint()} names no commit", "Check HF_ENDPOINT.")


def list_paths(uri: HubUri) -> list[str]:
    """Return the sorted paths of all files of a repository, or below `uri.path`, relative to the repository."""
    root = _path(uri.root)
    return [name.removeprefix(f"{root}/") for name in _files().find(_path(uri))]


def match_paths(uri: HubUri) -> list[str]:
    """Return the paths that match the glob in `uri.path` by the rules of fsspec, as the `datasets` library does."""
    root = _path(uri.root)
    found = cast("dict[str, Any]", _files().glob(_path(uri), detail=True))
    return [name.removeprefix(f"{root}/") for name, info in found.items() if info["type"] == "file"]


def version_of(path: str) -> str:
    """Return the id of a file's content: the SHA-256 of a large file, the git id of a small one."""
    info = _files().info(path)
    return str(getattr(info.get("lfs"), "sha256", None) or info.get("blob_id") or "")


def _files() -> HubFileSystem:
    return _files_at(endpoint())


@functools.lru_cache(maxsize=8)
def _files_at(url: str) -> HubFileSystem:
    """Return one filesystem for all threads, so that they share listings. At a commit these never change."""
    return HubFileSystem(endpoint=url, block_size=READ_AHEAD_BYTES, skip_instance_cache=True)


def _path(uri: HubUri) -> str:
    return str(uri).removeprefix("hf://")


class HubFileSystem(HfFileSystem):
    """The filesystem of the library, with translated failures.

    `info` of a file in a folder that is not listed yet requests that file alone. At a commit the library's check of
    the revision, which fetches the names of all files, is left out.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._found: dict[str, dict[str, Any] | None] = {}

    def _repo_and_revision_exist(
        self, repo_type: str, repo_id: str, revision: str | None
    ) -> tuple[bool, Exception | None]:
        if revision is not None and COMMIT.fullmatch(revision):
            return True, None
        return super()._repo_and_revision_exist(repo_type, repo_id, revision)

    def _open(self, path: str, mode: str = "rb", *_: Any, **options: Any) -> _File:
        return _File(self, path, mode=mode, block_size=options.get("block_size") or READ_AHEAD_BYTES)

    def info(self, path: str, *_: Any, **options: Any) -> dict[str, Any]:
        """Return size, type and ids of a file or folder. Raise FileNotFoundError."""
        name = self._strip_protocol(path)
        uri = HubUri.parse(f"hf://{name}")
        if not uri.path or not uri.is_pinned or self._parent(name) in self.dircache:
            with translated(uri):
                return dict(super().info(name, **options))
        if name not in self._found:
            with translated(uri):
                found = self._api.get_paths_info(uri.repository, uri.path, revision=uri.revision, repo_type="dataset")
            self._found[name] = _described(name, found[0]) if found else None
        if (known := self._found[name]) is None:
            raise FileNotFoundError(name)
        return known

    def find(self, path: str, *_: Any, **options: Any) -> Any:
        """Return the files below a path."""
        with translated(HubUri.parse(f"hf://{self._strip_protocol(path)}")):
            return super().find(path, **options)

    def exists(self, path: str, **_: Any) -> bool:
        """Return whether a file or folder exists. The library takes any failure for `False`."""
        return self._type_of(path) is not None

    def isdir(self, path: str) -> bool:
        """Return whether a folder exists."""
        return self._type_of(path) == "directory"

    def isfile(self, path: str) -> bool:
        """Return whether a file exists."""
        return self._type_of(path) == "file"

    def _type_of(self, path: str) -> str | None:
        try:
            return str(self.info(path)["type"])
        except FileNotFoundError:
            return None


def _described(name: str, found: Any) -> dict[str, Any]:
    if not isinstance(found, RepoFile):
        return {"name": name, "size": 0, "type": "directory"}
    ids = {"blob_id": found.blob_id, "lfs": found.lfs, "xet_hash": found.xet_hash, "last_commit": None}
    return {"name": name, "size": found.size, "type": "file", **ids}


class _File(HfFileSystemFile):
    """A file that is read by ranges."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        with translated(HubUri.parse(f"hf://{self.path}")):
            return bytes(super()._fetch_range(start, end))


class _Handler(pafs.FSSpecHandler):
    """Bridge to Arrow, for reading only."""

    def open_output_stream(self, path: str, metadata: Any) -> NoReturn:  # noqa: ARG002
        _refuse_to_write(path)

    def open_append_stream(self, path: str, metadata: Any) -> NoReturn:  # noqa: ARG002
        _refuse_to_write(path)

    def create_dir(self, path: str, recursive: bool) -> NoReturn:  # noqa: ARG002
        _refuse_to_write(path)

    def delete_file(self, path: str) -> NoReturn:
        _refuse_to_write(path)

    def delete_dir(self, path: str) -> NoReturn:
        _refuse_to_write(path)

    def copy_file(self, src: str, dest: str) -> NoReturn:  # noqa: ARG002
        _refuse_to_write(dest)

    def move(self, src: str, dest: str) -> NoReturn:  # noqa: ARG002
        _refuse_to_write(dest)


def _refuse_to_write(path: str) -> NoReturn:
    raise StorageError(
        f"cannot write hf://{path}: datasets of the hub are only read",
        "Write to a folder or an object store, then push with `qtune export OUT --to hub --push ORG/NAME`.",
    )
