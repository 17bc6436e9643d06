"""Identifiers that sort by the time of their making: 48 bits of milliseconds and 80 of chance.

The form is that of ULIDs (Crockford's base 32, which has no I, L, O, U), in lower case. In a process each is larger
than the one before, also within a millisecond.
"""

from __future__ import annotations

import secrets
import threading
import time

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
    return "".join(ALPHABET[value >> shift & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def is_id(text: str) -> bool:
    """Whether a text has the form of one."""
    return len(text) == LENGTH and set(text) <= set(ALPHABET)
