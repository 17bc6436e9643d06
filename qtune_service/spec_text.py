"""A job's spec as one line of text, so that it reaches a driver where no disk is shared.

Gzipped and in base64: what carries it (an environment variable, through a shell and through Ray, which puts the values
of its own environment in place of `${NAME}`) finds nothing in it to change.
"""

from __future__ import annotations

import base64
import binascii
import gzip
import json
import zlib
from collections.abc import Mapping
from typing import Any

from qtune_service.config import JobSpec, parse_spec
from qtune_service.errors import SpecError

MAX_CHARS = 100_000
"""The system takes 128 KiB in one variable or argument."""


def pack_spec(spec: Mapping[str, Any]) -> str:
    """The text. Raises SpecError where it gets too long to be handed over."""
    packed = base64.b64encode(gzip.compress(json.dumps(dict(spec)).encode(), mtime=0)).decode()
    if len(packed) > MAX_CHARS:
        raise SpecError(
            f"the job's spec is too long to be handed to the cluster ({len(packed):,} characters, {MAX_CHARS:,} go)",
            "Name a folder or a pattern in input.paths instead of each file.",
        )
    return packed


def unpack_spec(text: str, where: str) -> JobSpec:
    """The spec that such a text holds, or JSON. Raises SpecError that names `where`."""
    try:
        plain = text if text.lstrip().startswith("{") else gzip.decompress(base64.b64decode(text, validate=True))
        return parse_spec(json.loads(plain), where=where)
    except (binascii.Error, OSError, EOFError, zlib.error, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"{where} holds no job spec: {error}", "Give JSON, or that gzipped in base64.") from error
