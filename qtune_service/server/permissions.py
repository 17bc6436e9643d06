"""Permissions of the server's files: no other user of the machine reads its database, logs, specs and uploads.

`keep_private` is called by every command that opens the database or writes below the data root, before it does so. New
files are made under a umask of 077, and what is there from before is tightened. Drivers get the umask back that the
command was started with: who may read the outputs is the administrator's choice.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from qtune_service.errors import SettingsError

UMASK = 0o077
UNCHANGED = -1
FOLDERS = ("jobs", "arrivals", "datasets")
"""Folders in the data root that the server writes to; drivers write the others."""
_log = logging.getLogger(__name__)
_outer_umask = UNCHANGED


def driver_umask() -> int:
    """Return the umask that the command was started with, or -1 where it was not changed."""
    return _outer_umask


def keep_private(data_root: Path, database_url: str, *, may_be_shared: bool = False) -> None:
    """Make the files of a server private to its user, those that exist and those that this process makes.

    What cannot be changed is logged as a warning. Raises SettingsError where every user may write, unless
    may_be_shared.
    """
    global _outer_umask  # noqa: PLW0603 - as the umask itself, it is the process's
    before = os.umask(UMASK)
    if _outer_umask == UNCHANGED:
        _outer_umask = before
    try:
        data_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"{data_root} cannot be made: {error.strerror}", "See QTUNE_DATA_ROOT.") from error
    for path in _private_paths(data_root, database_url):
        exposed = _tightened(path)
        if exposed & stat.S_IWOTH and not may_be_shared:
            raise SettingsError(
                f"every user of this machine may write to {path}, and its permissions cannot be changed",
                "Choose a folder that belongs to the server's user alone. For the volume of a container, which no "
                "other user reaches: QTUNE_SHARED_DATA_ROOT=true.",
            )
        if exposed:
            _log.warning("other users may access %s (mode %o), and this cannot be changed", path, exposed)


def _private_paths(data_root: Path, database_url: str) -> Iterator[Path]:
    """Return what exists of the folders and files that the server keeps to itself."""
    found = [data_root, *(data_root / name for name in FOLDERS), *_database_files(database_url)]
    if (logs := data_root / "jobs").is_dir():
        found += (path for path in logs.iterdir() if not path.is_symlink())
    return (path for path in found if path.exists())


def _database_files(url: str) -> list[Path]:
    try:
        parsed = make_url(url)
    except ArgumentError:  # reported when it is opened
        return []
    if parsed.get_backend_name() != "sqlite" or not parsed.database:
        return []
    return [Path(f"{parsed.database}{ending}") for ending in ("", "-wal", "-shm", "-journal")]


def _tightened(path: Path) -> int:
    """Take the rights of group and others away; return those that are left."""
    try:
        mode = path.stat().st_mode
        if mode & UMASK and not _is_shared_on_purpose(path, mode):
            path.chmod(stat.S_IMODE(mode) & ~UMASK)
    except FileNotFoundError:  # a job was deleted, or SQLite has removed its log
        return 0
    except OSError:
        pass
    try:
        return path.stat().st_mode & UMASK
    except FileNotFoundError:
        return 0


def _is_shared_on_purpose(path: Path, mode: int) -> bool:
    """Return whether a folder is one like `/` or /tmp, which root must not take away from everybody."""
    return path == Path(path.anchor) or bool(mode & stat.S_ISVTX and path.is_dir() and any(path.iterdir()))
