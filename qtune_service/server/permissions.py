"""Keep the server's database, logs, specs and uploads private to its user.

Every command that opens the database or writes below the data root first calls `keep_private`. It sets a umask of 077
for new files and tightens the modes of existing ones. Drivers run under the umask that the command was started with, so
that the administrator decides on access to outputs.
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
"""Folders in the data root that the server writes. Drivers write the others."""
_log = logging.getLogger(__name__)
_outer_umask = UNCHANGED


def driver_umask() -> int:
    """Return the umask that the command was started with, or UNCHANGED."""
    return _outer_umask


def keep_private(data_root: Path, database_url: str, *, may_be_shared: bool = False) -> None:
    """Make the existing and future files of a server private to its user.

    Log a warning where a mode cannot be changed. Raise SettingsError where every user may write and may_be_shared is
    False.
    """
    global _outer_umask  # noqa: PLW0603 - a property of the process, as the umask is
    before = os.umask(UMASK)
    if _outer_umask == UNCHANGED:
        _outer_umask = before
    try:
        data_root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        hint = "Set QTUNE_DATA_ROOT to a folder that the server can write."
        raise SettingsError(f"{data_root} cannot be created: {error.strerror}", hint) from error
    for path in _private_paths(data_root, database_url):
        exposed = _tighten(path)
        if exposed & stat.S_IWOTH and not may_be_shared:
            raise SettingsError(
                f"every user of this machine may write to {path}, and its permissions cannot be changed",
                "Choose a folder that belongs to the server's user alone. For the volume of a container, which no "
                "other user reaches: QTUNE_SHARED_DATA_ROOT=true.",
            )
        if exposed:
            _log.warning("other users may access %s (mode %o), and its permissions cannot be changed", path, exposed)


def _private_paths(data_root: Path, database_url: str) -> Iterator[Path]:
    """Return the existing folders and files of the server."""
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


def _tighten(path: Path) -> int:
    """Remove the rights of group and others, and return those that are left."""
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
    """Return whether a folder is `/`, or sticky as /tmp is, so that its mode must stay for other users."""
    return path == Path(path.anchor) or bool(mode & stat.S_ISVTX and path.is_dir() and any(path.iterdir()))
