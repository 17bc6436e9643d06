"""Where the tokens of a text lie, in characters.

The tokenizer can say so itself, at the price of a fifth of its time and of many small lists. A byte-level tokenizer
need not be asked: each token stands for certain bytes, so where the tokens of a text, put together, are its very bytes,
their lengths tell their places. That is checked for every text, byte by byte. Texts among which it does not hold (a
normalizer changed characters, a special token swallowed the space beside it) are tokenised again with offsets, and so
is everything where the tokenizer is of another kind.

As in the tokenizer's own answer, a token that holds a part of a character lies where the whole character does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qtune_service.tokenize.encoded_batch import offsets_of

PROBE = "a b  \n\u00e9\u6f22"
MAX_MISSES = 4
"""After so many more groups of texts without a proof than with one, none is looked for any more."""


@dataclass(frozen=True, slots=True)
class PlacedTokens:
    """Tokens of S texts. Those of text s are [offsets[s], offsets[s + 1])."""

    ids: NDArray[np.int32]  # (L,)
    offsets: NDArray[np.int64]  # (S + 1,)
    begins: NDArray[np.int64]  # (L,) characters of its own text
    ends: NDArray[np.int64]  # (L,)


class Placer:
    """A Rust tokenizer that says where its tokens lie. Special tokens are those that the texts hold, and no others."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._table: _ByteTable | None = _ByteTable.of(backend)
        self._misses = 0
        if self._by_bytes([PROBE], self._table) is None:
            self._table = None

    def place(self, texts: Sequence[str]) -> PlacedTokens:
        """Tokenise texts."""
        if self._table is None or not texts:
            return self._by_offsets(texts)
        placed = self._by_bytes(texts, self._table)
        self._misses += 1 if placed is None else -1
        if self._misses > MAX_MISSES:
            self._table = None
        return placed or self._by_offsets(texts)

    def _by_offsets(self, texts: Sequence[str]) -> PlacedTokens:
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        pairs = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        flat = np.fromiter(pairs, np.int64)  # (2 L,)
        return PlacedTokens(*_ids_of(encodings), begins=flat[::2], ends=flat[1::2])

    def _by_bytes(self, texts: Sequence[str], table: _ByteTable) -> PlacedTokens | None:
        """None where the tokens of some text are not its bytes."""
        ids, offsets = _ids_of(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        encoded = [text.encode() for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)  # (B,)
        ends = table.ends(ids)  # (L,) bytes of all texts, one behind the other
        starts_of_texts = offsets_of(np.fromiter(map(len, encoded), np.int64, len(texts)))
        edges = np.concatenate(([0], ends))  # (L + 1,)
        if not np.array_equal(edges[offsets], starts_of_texts) or not table.spells(ids, edges, data):
            return None
        begins = edges[:-1]
        if (chars := _char_of_byte(data)) is not None:
            begins, ends = chars[begins], chars[ends - 1] + 1
            starts_of_texts = offsets_of(np.fromiter(map(len, texts), np.int64, len(texts)))
        shift = np.repeat(starts_of_texts[:-1], np.diff(offsets))
        return PlacedTokens(ids, offsets, begins=begins - shift, ends=ends - shift)


def _ids_of(encodings: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    lists = [encoding.ids for encoding in encodings]
    sizes = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(chain.from_iterable(lists), np.int32, int(sizes.sum())), offsets_of(sizes)


def _char_of_byte(data: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Which character each byte of UTF-8 text belongs to (B,); None where all are ASCII, and so their own index."""
    if not (data & 0x80).any():
        return None
    return np.cumsum((data & 0xC0) != 0x80, dtype=np.int64) - 1


@dataclass(frozen=True, slots=True)
class _ByteTable:
    """The bytes that each token of a byte-level vocabulary stands for."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]  # (V,) in data
    sizes: NDArray[np.int64]  # (V,)

    @classmethod
    def of(cls, backend: Any) -> Self:
        """Read the vocabulary. What is not of the byte-level alphabet gets bytes that no text will match."""
        vocab: dict[str, int] = backend.get_vocab(with_added_tokens=False)
        added = {index: token.content.encode() for index, token in backend.get_added_tokens_decoder().items()}
        own = {index: token for token, index in vocab.items() if index not in added}
        data = "".join(own.values()).translate(_ALPHABET).encode("latin-1", "replace") + b"".join(added.values())
        indices = np.fromiter(chain(own, added), np.int64, len(own) + len(added))
        sizes = np.fromiter(map(len, chain(own.values(), added.values())), np.int64, len(indices))
        table = cls(np.frombuffer(data, np.uint8), *np.zeros((2, int(indices.max()) + 1), np.int64))
        table.starts[indices], table.sizes[indices] = offsets_of(sizes)[:-1], sizes
        return table

    def ends(self, ids: NDArray[np.int32]) -> NDArray[np.int64]:
        """Where each token ends in the bytes of all (L,)."""
        return np.cumsum(self.sizes[ids])

    def spells(self, ids: NDArray[np.int32], edges: NDArray[np.int64], data: NDArray[np.uint8]) -> bool:
        """Whether the tokens, put together, are `data`. edges: (L + 1,)."""
        sizes = self.sizes[ids]
        if len(data) != edges[-1] or not sizes.all():
            return False
        places = np.repeat(self.starts[ids] - edges[:-1], sizes) + np.arange(len(data))
        return np.array_equal(self.data[places], data)


def _byte_level_alphabet() -> dict[int, int]:
    """The characters that byte-level vocabularies write for bytes -> the bytes (GPT-2's table)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {byte: byte for byte in plain} | {256 + i: byte for i, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()
