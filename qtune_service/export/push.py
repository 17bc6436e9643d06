"""Push an exported folder to the Hugging Face hub as a dataset repository, in one commit.

A new repository is private unless `public` is set. One that holds other files than an earlier export is not changed,
and one that is public is not written to without `public`. All checks that need no data come before the export. Large
files are sent first and the commit makes them visible, so that nobody reads half a dataset.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from qtune_service.errors import DataError, OutputConflictError, SpecError, StorageError
from qtune_service.storage import file_io
from qtune_service.storage.hub_uri import HubUri

T = TypeVar("T")
OURS = re.compile(r"data/train-\d{5}-of-\d{5}\.parquet|README\.md|\.gitattributes")
"""Files of a repository that an export replaces."""
KEPT = ".gitattributes"
LOGIN = "Log in with `hf auth login`, or set HF_TOKEN to a token with write access."


@dataclass(frozen=True, slots=True)
class Push:
    """Where an export is pushed."""

    repository: str
    """ORG/NAME"""
    public: bool = False
    message: str = ""
    """Commit message. Empty: the default one."""
    overwrite: bool = False
    """Replace an earlier export in the repository."""


@dataclass(frozen=True, slots=True)
class Pushed:
    """A repository after a push."""

    url: str
    commit: str
    is_private: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Existing:
    """A repository that exists."""

    is_private: bool
    files: tuple[str, ...]


@contextmanager
def local_folder(folder: str | None, push: Push | None) -> Iterator[str]:
    """Yield the folder of an export; a temporary one where it is only pushed. Raise SpecError."""
    if folder is None and push is None:
        raise SpecError("no folder given", "Name the folder to write to, DIR; or push with --push ORG/NAME.")
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="qtune-push-") as made:
            yield made
        return
    if push is not None and "://" in folder and not folder.startswith("file://"):
        raise SpecError(f"{folder} is not on this machine: --push uploads a local folder", "Leave DIR out.")
    yield folder


def check(push: Push) -> None:
    """Raise QTuneError where the push would fail: no token, no right, or a repository with other content."""
    _uri(push)
    from qtune_service.storage.hub_errors import api, has_token

    if not has_token():
        raise StorageError(f"cannot push to {push.repository}: there is no token", LOGIN)
    about = _call(push, lambda: api().whoami())
    role = ((about.get("auth") or {}).get("accessToken") or {}).get("role")
    if role == "read":
        raise StorageError(f"cannot push to {push.repository}: the token can only read", LOGIN)
    existing = _find(push)
    if existing is not None:
        _check_existing(push, existing)


def upload(push: Push, folder: str) -> Pushed:
    """Create the repository if it does not exist, and commit the files of a folder. Raise QTuneError."""
    from qtune_service.storage.hub_errors import api, endpoint

    existing, notes = _find(push), []
    if existing is None:
        name = push.repository
        _call(push, lambda: api().create_repo(name, repo_type="dataset", private=not push.public, exist_ok=True))
    else:
        _check_existing(push, existing)
        if push.public and existing.is_private:
            notes.append(f"{push.repository} was private before and stays so: make it public in its settings")
    folder = file_io.resolve(folder).path
    paths = sorted(path for path in Path(folder).rglob("*") if path.is_file() and not path.name.startswith("."))
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    replaced = [file for file in (existing.files if existing else ()) if file not in files and file != KEPT]
    message = push.message or "Add data pruned by qtune-service"
    commit = _call(push, lambda: _commit(push.repository, files, replaced, message))
    is_private = existing.is_private if existing else not push.public
    return Pushed(f"{endpoint()}/datasets/{push.repository}", str(commit.oid), is_private, tuple(notes))


def _commit(repository: str, files: dict[str, Path], removed: list[str], message: str) -> Any:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    from qtune_service.storage.hub_errors import api

    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        *(CommitOperationDelete(path_in_repo=path) for path in removed),
        *(CommitOperationAdd(path_in_repo=path, path_or_fileobj=file) for path, file in files.items()),
    ]
    try:
        return api().create_commit(repository, operations, commit_message=message, repo_type="dataset")
    except ValueError as error:  # the hub has checked the card
        if "README.md" not in str(error):
            raise
        what = " ".join(str(error).split())[:500]
        raise DataError(
            f"the hub does not accept the card: {what}", "Is --license an identifier of the hub?"
        ) from error
    except (ConnectionError, TimeoutError, PermissionError, RuntimeError) as error:  # of hf_xet, which repeats requests
        raise StorageError(
            f"cannot push to {repository}: sending to the storage of the hub failed ({type(error).__name__})",
            "Check the network and run the same command again. Nothing was committed, and parts are not sent twice.",
        ) from error


def _find(push: Push) -> _Existing | None:
    """Return the repository, or None where there is none that this token can see."""
    from huggingface_hub.errors import RepositoryNotFoundError

    from qtune_service.storage.hub_errors import api

    def find() -> _Existing | None:
        try:
            found = api().dataset_info(push.repository)
        except RepositoryNotFoundError:
            return None
        return _Existing(bool(found.private), tuple(file.rfilename for file in found.siblings or ()))

    return _call(push, find)


def _check_existing(push: Push, existing: _Existing) -> None:
    name, held = push.repository, [file for file in existing.files if file != KEPT]
    foreign = next((file for file in held if OURS.fullmatch(file) is None), None)
    if foreign is not None:
        raise OutputConflictError(
            f"the dataset {name} contains {foreign}, which is not a file of an export",
            "Choose another name. Nothing was changed.",
        )
    if held and not push.overwrite:
        raise OutputConflictError(
            f"the dataset {name} exists and holds {len(held)} files",
            "Choose another name, or pass --overwrite to replace its data by a new commit.",
        )
    if not existing.is_private and not push.public:
        raise OutputConflictError(
            f"the dataset {name} is public", "Pass --public to publish the data there, or choose another name."
        )


def _call(push: Push, call: Callable[[], T]) -> T:
    """Call the hub with retries, and explain failures."""
    from qtune_service.storage.hub_errors import translated

    uri = _uri(push)

    def attempt() -> T:
        with translated(uri, "push to"):
            return call()

    return file_io.retrying(str(uri), "push to", attempt)


def _uri(push: Push) -> HubUri:
    """Return the URI of the repository. Raise SpecError for another form than ORG/NAME."""
    try:
        uri = HubUri.parse(f"hf://datasets/{push.repository}")
    except SpecError:
        uri = HubUri("")
    if uri.repository != push.repository:
        raise SpecError(f"--push {push.repository}: not the name of a dataset", "Give it as ORG/NAME or USER/NAME.")
    return uri
