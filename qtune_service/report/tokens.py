"""Tokens as text: what each token adds to the decoded sample.

A character's bytes may be spread over several tokens; such tokens are decoded as a group, the first shows the text and
the others show nothing. A group is complete when its decoding no longer ends in U+FFFD. A character has at most four
bytes and a token at least one, so a U+FFFD that three further tokens did not resolve is in the data itself and stays
with its token. Each decoding sees the previous group as context (tokenizers drop a leading space at the start of a
text) and nothing before it, so time is linear in the length.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence

Decode = Callable[[list[int]], str]  # with special tokens, and without clean-up of spaces
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
MAX_GROUP = 64  # tokens; a longer chain of characters that straddle tokens is split where it stands
SHOWN_AS_CODE = frozenset("\u200b\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u061c")


def token_texts(decode: Decode, ids: Sequence[int]) -> list[str]:
    """One text a token; joined, they are the decoded sample."""
    texts: list[str] = []
    context: list[int] = []
    start = 0
    while start < len(ids):
        size, text = _group(decode, context, ids, start)
        texts.extend([text] + [""] * (size - 1))
        context = list(ids[start : start + size])
        start += size
    return texts


def _group(decode: Decode, context: list[int], ids: Sequence[int], start: int) -> tuple[int, str]:
    """Number and text of the tokens that must be decoded together, from `start` on."""
    alone = text = _piece(decode, context, ids[start : start + 1])
    size = 1
    while text.endswith(UNKNOWN):
        unresolved = size > 3 and text.find(UNKNOWN) == alone.find(UNKNOWN)
        if unresolved or size == MAX_GROUP or start + size == len(ids):
            return 1, alone
        size += 1
        text = _piece(decode, context, ids[start : start + size])
    if size > 1 and text == alone + _piece(decode, context, ids[start + 1 : start + size]):
        return 1, alone
    return size, text


def _piece(decode: Decode, context: list[int], piece: Sequence[int]) -> str:
    before = decode(context) if context else ""
    both = decode([*context, *piece])
    # A decoder may join broken bytes of the context with the piece; then the piece is read by itself.
    return both[len(before) :] if both.startswith(before) else decode(list(piece))


def visible_text(text: str) -> str:
    """Text with what cannot be seen, or would reorder its neighbours, written as signs. Line ends and tabs stay."""
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char in "\n\t":
        return char
    if char < " " or char == "\x7f":
        return chr(0x2421 if char == "\x7f" else 0x2400 + ord(char))  # Unicode's pictures of control codes
    if char in SHOWN_AS_CODE or unicodedata.category(char) in ("Cc", "Cs"):
        return f"⟨U+{ord(char):04X}⟩"
    return char
