"""Resolve settings that name a chat template or a model: the only place that decides what they mean.

A `chat_template` that contains `{{` or `{%` is a template and is never opened as a file. `trl:NAME` is a template that
the installed TRL ships (its training variant, if there is one). Any other value is a path, and a file without these
marks is rejected. So the text of a file is a template by the same rule and never becomes a path.
Errors name the path and the problem, and never quote the file.

A model or tokenizer name is a local folder, a URI of a folder on an object store, or a hub id. A model on an object
store is fetched into the cache of this node (storage/model_cache.py).
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path

from qtune_service.config import ModelSpec
from qtune_service.errors import SpecError
from qtune_service.storage import model_cache
from qtune_service.storage.confined import is_really_below, local_path, real_path
from qtune_service.tokenize.trl_templates import families, file_of


def model_folder(name: str) -> Path | None:
    """Return the local folder of a model name, or None for a hub id.

    A name is a folder if it is written as a path, or if a folder of that name exists, as in transformers and vLLM.
    """
    try:
        folder = Path(name).expanduser()
        exists = folder.exists()
    except (OSError, RuntimeError, ValueError):  # too long, an unknown home folder, or a NUL
        folder, exists = Path(name), False
    return folder if exists or name in (".", "..") or name.startswith(("/", "./", "../", "~")) else None


def with_local_files(model: ModelSpec, *, weights: bool = False, version: str | None = None) -> ModelSpec:
    """Return a model with local folders in place of URIs. weights: whether the model is going to be loaded.

    version: the version of a model on an object store, any if None. Raise ModelError and StorageError.
    """
    changes = {}
    if model_cache.is_remote(model.name):
        changes["name"] = _local_name(model.name, weights=weights, version=version)
    if model.tokenizer is not None and model_cache.is_remote(model.tokenizer):
        changes["tokenizer"] = _local_name(model.tokenizer, weights=False, version=None)
    return model.model_copy(update=changes) if changes else model


def _local_name(uri: str, *, weights: bool, version: str | None) -> str:
    if uri.startswith("file://"):
        return str(local_path(uri))
    folder, _ = model_cache.fetch(uri, weights=weights, version=version)
    return str(folder)


MAX_TEMPLATE_BYTES = 1 << 20
_HINT = "Give a Jinja template, the path of a UTF-8 file that contains one, or trl:NAME for one that TRL ships."
_TRL_NAME = re.compile(r"trl:([a-z0-9_.]{1,100})", re.ASCII)


def is_template(value: str) -> bool:
    """Return whether a setting is a template and not a path."""
    return "{{" in value or "{%" in value


def is_trl_name(value: str) -> bool:
    """Return whether a setting names a template of TRL. A name is never a path."""
    return not is_template(value) and value.startswith("trl:")


def read_chat_template(value: str, roots: tuple[str, ...] | None = None) -> str:
    """Return the text of `InputSpec.chat_template`. Raise SpecError if its file cannot be used.

    roots: folders that must contain the file with links resolved; None for any folder.
    """
    if is_template(value):
        return value
    if is_trl_name(value):
        return _read_trl_template(value)
    try:
        content = _read(Path(value).expanduser(), roots)
    except OSError as error:
        raise SpecError(f"cannot read the chat template {_shown(value)}: {error.strerror}", _HINT) from None
    except (RuntimeError, ValueError):  # no such home folder; a NUL
        raise SpecError(f"cannot read the chat template {_shown(value)}: it is not a valid path", _HINT) from None
    if len(content) > MAX_TEMPLATE_BYTES:
        raise SpecError(f"the chat template {_shown(value)} has more than {MAX_TEMPLATE_BYTES:,} bytes", _HINT)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SpecError(f"the chat template {_shown(value)} is not UTF-8 text", _HINT) from None
    if not is_template(text):
        raise SpecError(f"{_shown(value)} is not a chat template: it contains neither {{{{ nor {{%", _HINT)
    return text


def _read_trl_template(value: str) -> str:
    """Return the template of the installed TRL that `trl:NAME` names. Raise SpecError if there is none."""
    named = _TRL_NAME.fullmatch(value)
    path = file_of(named[1]) if named else None
    if path is not None:
        return path.read_text(encoding="utf-8")
    if not (known := families()):
        raise SpecError(f"cannot read the chat template {_shown(value)}: TRL is not installed here", _HINT)
    raise SpecError(
        f"TRL has no chat template {_shown(value)[4:]!r}", f"The installed TRL has these: {', '.join(known)}."
    )


def _read(path: Path, roots: tuple[str, ...] | None) -> bytes:
    """Read a regular file up to one byte over its limit. Raise OSError for other kinds of files."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        if roots is not None and not is_really_below(real_path(descriptor, path), roots):
            raise OSError(errno.EACCES, "it is a link to a folder that is not allowed")
        return file.read(MAX_TEMPLATE_BYTES + 1)


def _shown(value: str) -> str:
    """Return a path for a message, truncated."""
    return value if len(value) <= 300 else f"{value[:300]}..."
