"""Identifiers that sort by the time of their making: 48 bits of milliseconds and 80 of chance.

The form is that of ULIDs (Crockford's base 32, which has no I, L, O, U), in lower case.
"""

from __future__ import annotations

import secrets
import time

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
LENGTH = 26


def new_id() -> str:
    """A new identifier."""
    value = (time.time_ns() // 1_000_000 << 80) | secrets.randbits(80)
    return "".join(ALPHABET[value >> shift & 31] for shift in range(5 * (LENGTH - 1), -1, -5))


def is_id(text: str) -> bool:
    """Whether a text has the form of one."""
    return len(text) == LENGTH and set(text) <= set(ALPHABET)
