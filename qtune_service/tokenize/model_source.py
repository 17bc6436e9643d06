"""Decide whether the name of a model or tokenizer is a local folder or an id on a hub: the one place for it."""

from __future__ import annotations

from pathlib import Path


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
