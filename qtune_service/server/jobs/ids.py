"""Identifiers that sort by the time of their making: 48 bits of milliseconds and 80 of chance.

The form is that of ULIDs (Crockford's base 32, which has no I, L, O, U), in lower case. In a process each is larger
than the one before, also within a millisecond.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import threading
import time

from qtune_service.errors import SpecError

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26
CHANCE_BITS = 80

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """A new identifier."""
    global _last  # noqa: PLW0603 - the order holds for the whole process
    with _lock:
        fresh = (time.time_ns() // 1_000_000 << CHANCE_BITS) | secrets.randbits(CHANCE_BITS)
        same_time = fresh >> CHANCE_BITS <= _last >> CHANCE_BITS
        _last = _last + 1 + secrets.randbits(32) if same_time else fresh
        value = _last
    return _text(value)


def id_of_time(time_ms: int, of: str) -> str:
    """The identifier of something that was made then: always the same one."""
    chance = int.from_bytes(hashlib.sha256(of.encode()).digest()[: CHANCE_BITS // 8])
    return _text(time_ms << CHANCE_BITS | chance)


def time_ms_of(identifier: str) -> int:
    """When an identifier was made, in milliseconds since 1970."""
    value = 0
    for letter in identifier:
        value = value << 5 | ALPHABET.index(letter)
    return value >> CHANCE_BITS


def _text(value: int) -> str:
    return "".join(ALPHABET[value >> shift & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def is_id(text: str) -> bool:
    """Whether a text has the form of one."""
    return len(text) == LENGTH and set(text) <= set(ALPHABET)


def cursor_after(last_id: str) -> str:
    """Where the page behind this one begins; opaque to who gets it."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def id_of_cursor(cursor: str) -> str:
    """The id that `cursor_after` hid. Raises SpecError."""
    try:
        found = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        found = ""
    if not is_id(found):
        raise SpecError("the cursor is none of this server's", "Take it from `next_cursor` of the page before.")
    return found
