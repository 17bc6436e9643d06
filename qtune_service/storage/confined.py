"""Open, list and remove files that must be inside a folder on the local disk.

Each path segment is opened relative to the descriptor of its parent, and no symbolic link is followed. So nothing can
change between check and use, and a user with write access to the folder cannot make this process read, list or remove
files elsewhere. Only regular files are opened. FIFOs, sockets and devices are refused. Links in the path of the folder
itself are followed, except in its last segment if `may_be_link` is false.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from qtune_service.errors import OutputConflictError

SEGMENT = re.compile(r"[^/\\\x00-\x1f\x7f?#*%]{1,255}")
"""Valid file name in an output. `?`, `#` and `%` are special in a URI, `*` in a pattern."""
MAX_SEGMENTS = 8
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


@dataclass(frozen=True, slots=True)
class Root:
    """The folder that contains a path."""

    uri: str
    """A local path, or a URI of an object store, which has no links, so that only the form of a path matters."""
    may_be_link: bool = True
    """Whether the folder itself may be a symbolic link."""


def segments(*parts: str) -> tuple[str, ...]:
    """Split the path of a file inside a folder. Raise OutputConflictError unless the path is plain.

    No segment is empty, `.` or `..`, and none has a character that is special in a path, a URI or a pattern.
    """
    found = tuple(segment for part in parts for segment in part.split("/"))
    if not 0 < len(found) <= MAX_SEGMENTS or not all(map(_is_plain, found)):
        raise outside("/".join(parts))
    return found


def _is_plain(segment: str) -> bool:
    return segment not in (".", "..") and segment.isprintable() and SEGMENT.fullmatch(segment) is not None


def outside(path: str) -> OutputConflictError:
    """Return the error for a path that is not plain or that leaves its folder."""
    hint = "The output was changed. Run the job again with another output."
    return OutputConflictError(f"the output names a file that is not inside it: {path[:200]!r}", hint)


def open_file(root: Root, *path: str) -> int:
    """Return a descriptor of a regular file. Raise FileNotFoundError, OutputConflictError and other OSErrors."""
    with opened_parent(root, *path) as (parent, name):
        # Check before opening: opening a device can have side effects.
        if not stat.S_ISREG(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode):
            raise outside("/".join(path))
        with _links_are_conflicts("/".join(path)):
            descriptor = os.open(name, _FILE, dir_fd=parent)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise outside("/".join(path))
        return descriptor


@contextlib.contextmanager
def opened_parent(root: Root, *path: str) -> Iterator[tuple[int, str]]:
    """Open the parent folder of a file; yield its descriptor and the file name. Raise as `open_file` does."""
    *folders, name = path
    with opened_folder(root, *folders) as descriptor:
        yield descriptor, name


@contextlib.contextmanager
def opened_folder(root: Root, *path: str) -> Iterator[int]:
    """Open the root, or a folder in it; yield its descriptor."""
    with contextlib.ExitStack() as stack:
        with _links_are_conflicts(root.uri):
            descriptor = _push_close(stack, os.open(root.uri, _FOLDER | (0 if root.may_be_link else os.O_NOFOLLOW)))
        for folder in path:
            with _links_are_conflicts("/".join(path)):
                descriptor = _push_close(stack, os.open(folder, _FOLDER | os.O_NOFOLLOW, dir_fd=descriptor))
        yield descriptor


def _push_close(stack: contextlib.ExitStack, descriptor: int) -> int:
    stack.callback(os.close, descriptor)
    return descriptor


@contextlib.contextmanager
def _links_are_conflicts(path: str) -> Iterator[None]:
    """Turn the failure to open a symbolic link without following it into an OutputConflictError."""
    try:
        yield
    except OSError as error:
        # Linux reports ENOTDIR for a link that is opened as a folder. A file instead of a folder is an error too.
        if error.errno in (errno.ELOOP, errno.EMLINK, errno.ENOTDIR):
            raise outside(path) from error
        raise


def make_folders(root: Root, *path: str) -> None:
    """Create the root and a folder in it, if missing. Raise OutputConflictError for a link."""
    Path(root.uri).mkdir(parents=True, exist_ok=True)
    for depth, name in enumerate(path):
        with opened_folder(root, *path[:depth]) as parent, contextlib.suppress(FileExistsError):
            os.mkdir(name, dir_fd=parent)
    with opened_folder(root, *path):
        pass


def link(source: Root, target: Root, *path: str) -> bool:
    """Create a hard link to a file at the same path in another folder, and replace an existing file.

    Return False if the filesystem does not support it. Raise OutputConflictError if the path leaves a folder.
    """
    os.close(open_file(source, *path))
    with opened_parent(source, *path) as (origin, name), opened_parent(target, *path) as (goal, _):
        temporary = f".{name}.{os.getpid()}-{secrets.token_hex(4)}.tmp"
        try:
            os.link(name, temporary, src_dir_fd=origin, dst_dir_fd=goal, follow_symlinks=False)
        except OSError as error:
            if error.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
                return False
            raise
        # The name may have become a link since the check. Then the new name is a link as well.
        if not stat.S_ISREG(os.stat(temporary, dir_fd=goal, follow_symlinks=False).st_mode):
            os.unlink(temporary, dir_fd=goal)
            raise outside("/".join(path))
        os.replace(temporary, name, src_dir_fd=goal, dst_dir_fd=goal)
        os.fsync(goal)
        return True


def list_names(root: Root, *path: str) -> list[tuple[str, bool]]:
    """List a folder: sorted (name, is_folder) pairs; empty if the folder does not exist."""
    try:
        with opened_folder(root, *path) as descriptor, os.scandir(descriptor) as entries:
            return sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    except FileNotFoundError:
        return []


def remove_file(root: Root, *path: str) -> None:
    """Remove a file or a symbolic link itself, if it exists."""
    with contextlib.suppress(FileNotFoundError), opened_parent(root, *path) as (parent, name):
        os.unlink(name, dir_fd=parent)


def remove_folder_if_empty(root: Root, *path: str) -> None:
    """Remove a folder in the root, if it exists and is empty."""
    with contextlib.suppress(FileNotFoundError, OutputConflictError), opened_parent(root, *path) as (parent, name):
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def real_path(descriptor: int, path: Path) -> Path:
    """Return the real path of an open file; without /proc, the resolved path."""
    link = Path(f"/proc/self/fd/{descriptor}")
    return link.readlink() if link.is_symlink() else path.resolve()


def is_really_below(path: Path, roots: tuple[str, ...]) -> bool:
    """Return whether a local path, with links resolved, is inside one of the roots. Roots may be `file://` URIs."""
    try:
        real = path.resolve()
        return any(real.is_relative_to(local_path(root).resolve()) for root in roots if _is_local(root))
    except (OSError, RuntimeError, ValueError):  # a loop of links, a long name, a NUL
        return False


def local_path(uri: str) -> Path:
    """Return the path of a local file or `file://` URI."""
    return Path(unquote(urlsplit(uri).path) if uri.startswith("file://") else uri)


def _is_local(uri: str) -> bool:
    return "://" not in uri or uri.startswith("file://")
