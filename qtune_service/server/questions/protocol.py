"""Requests and answers between the server and a child: JSON, because the server does not trust the child.

orjson is fast; json holds what it cannot, such as numbers of more than 64 bits. The first byte says which it is.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

FAST, EXACT = b"o", b"j"


def encode(value: Any) -> bytes:
    """Return a value of plain data as bytes."""
    try:
        return FAST + orjson.dumps(value)
    except TypeError:  # orjson's errors are of this kind
        return EXACT + json.dumps(value, allow_nan=False).encode()


def decode(body: bytes) -> Any:
    """Return what `encode` was given. Raises ValueError for anything else."""
    try:
        return orjson.loads(body[1:]) if body[:1] == FAST else json.loads(body[1:])
    except RecursionError as error:
        raise ValueError(str(error)) from None
