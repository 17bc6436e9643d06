"""Decide whether a `chat_template` setting is a template or the path of one, and read it: the one place for both.

A value that holds `{{` or `{%` is a template and is never opened as a file; any other value is a path. A file that
holds neither is refused. So the text that was read is a template by the same rule, and never becomes a path again.
Errors say where and what kind, and never quote the file.

Decide whether the name of a model or tokenizer is a local folder or an id on a hub: the one place for it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from qtune_service.errors import SpecError
from qtune_service.storage.confined import is_really_below, real_path


def model_folder(name: str) -> Path | None:
    """Return the local folder that a name means; None where it is an id on a hub.

    A name is a folder where it is written as a path, and where a folder of that name exists in the working folder, as
    transformers and vLLM have it too.
    """
    try:
        folder = Path(name).expanduser()
        exists = folder.exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown home folder, a NUL
        folder, exists = Path(name), False
    return folder if exists or name in (".", "..") or name.startswith(("/", "./", "../", "~")) else None


MAX_TEMPLATE_BYTES = 1 << 20
_HINT = "Give a Jinja template, or the path of a UTF-8 file that holds one."


def is_template(value: str) -> bool:
    """Return whether a setting is a template; else it is a path."""
    return "{{" in value or "{%" in value


def read_chat_template(value: str, roots: tuple[str, ...] | None = None) -> str:
    """Return the text of `InputSpec.chat_template`. Raise SpecError where its file cannot be used.

    roots: folders that the file must really be in, after links; None: any place.
    """
    if is_template(value):
        return value
    try:
        content = _read(Path(value).expanduser(), roots)
    except OSError as error:
        raise SpecError(f"cannot read the chat template {_shown(value)}: {error.strerror}", _HINT) from None
    except (RuntimeError, ValueError):  # no such home folder; a NUL
        raise SpecError(f"cannot read the chat template {_shown(value)}: it is no path", _HINT) from None
    if len(content) > MAX_TEMPLATE_BYTES:
        raise SpecError(f"the chat template {_shown(value)} has more than {MAX_TEMPLATE_BYTES:,} bytes", _HINT)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SpecError(f"the chat template {_shown(value)} is not UTF-8 text", _HINT) from None
    if not is_template(text):
        raise SpecError(f"{_shown(value)} is no chat template: it has neither {{{{ nor {{%", _HINT)
    return text


def _read(path: Path, roots: tuple[str, ...] | None) -> bytes:
    """Read a regular file, at most one byte more than it may have. Raise OSError for any other kind of file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file")
        if roots is not None and not is_really_below(real_path(descriptor, path), roots):
            raise OSError(errno.EACCES, "a link leads out of the folders that are allowed")
        return file.read(MAX_TEMPLATE_BYTES + 1)


def _shown(value: str) -> str:
    """Return a path for a message; what is too long for one is cut."""
    return value if len(value) <= 300 else f"{value[:300]}..."
