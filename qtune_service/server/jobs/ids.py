"""Create identifiers that sort by creation time, and cursors of pages.

An identifier is a ULID in lower case: 48 bits of milliseconds and 80 random bits in Crockford's base 32, which has no
I, L, O and U. Within a process each identifier is larger than the one before, even in the same millisecond.
Source: https://github.com/ulid/spec
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
RANDOM_BITS = 80

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """Return a new identifier."""
    global _last  # noqa: PLW0603 - the order holds for the whole process
    with _lock:
        fresh = (time.time_ns() // 1_000_000 << RANDOM_BITS) | secrets.randbits(RANDOM_BITS)
        same_time = fresh >> RANDOM_BITS <= _last >> RANDOM_BITS
        _last = _last + 1 + secrets.randbits(32) if same_time else fresh
        value = _last
    return _text(value)


def id_of_time(time_ms: int, of: str) -> str:
    """Return an identifier that depends only on a time in milliseconds since 1970 and a text."""
    digest_bits = int.from_bytes(hashlib.sha256(of.encode()).digest()[: RANDOM_BITS // 8])
    return _text(time_ms << RANDOM_BITS | digest_bits)


def time_ms_of(identifier: str) -> int:
    """Return the creation time of an identifier, in milliseconds since 1970."""
    value = 0
    for letter in identifier:
        value = value << 5 | ALPHABET.index(letter)
    return value >> RANDOM_BITS


def _text(value: int) -> str:
    return "".join(ALPHABET[value >> shift & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def is_id(text: str) -> bool:
    """Return whether a text has the form of an identifier."""
    return len(text) == LENGTH and set(text) <= set(ALPHABET)


def cursor_after(last_id: str) -> str:
    """Return the opaque cursor of the page after an id."""
    return base64.urlsafe_b64encode(last_id.encode()).decode().rstrip("=")


def id_of_cursor(cursor: str) -> str:
    """Return the id in a cursor of `cursor_after`. Raise SpecError for any other text."""
    try:
        found = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode("ascii")
    except (binascii.Error, ValueError):
        found = ""
    if not is_id(found):
        raise SpecError("the cursor is not valid", "Use `next_cursor` of the page before.")
    return found
