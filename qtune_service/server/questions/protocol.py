"""Encode requests and answers between the server and a child as JSON, because the server does not trust the child.

orjson is fast. json encodes values that orjson refuses, such as integers of more than 64 bits. The first byte of a
message names the encoder.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

FAST, EXACT = b"o", b"j"


def encode(value: Any) -> bytes:
    """Encode a value of plain data."""
    try:
        return FAST + orjson.dumps(value)
    except TypeError:  # orjson raises a subclass of it
        return EXACT + json.dumps(value, allow_nan=False).encode()


def decode(body: bytes) -> Any:
    """Decode a message of `encode`. Raise ValueError for anything else."""
    try:
        return orjson.loads(body[1:]) if body[:1] == FAST else json.loads(body[1:])
    except RecursionError as error:
        raise ValueError(str(error)) from None
