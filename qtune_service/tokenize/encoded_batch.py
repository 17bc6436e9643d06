"""Tokenized records as flat columns, with vectorized checks, and the character offsets of tokens.

Records pass through Python one by one up to their text. From the tokenizer on, operations apply to whole columns. At
about 30 tokens a record this halves the cost of small arrays for each record.

`TokenLocator` computes offsets. The tokenizer can return them, at a fifth of its time and many small lists. For a
byte-level tokenizer this is not needed: each token represents certain bytes, so if the concatenated bytes of the tokens
equal the text, their lengths give the offsets. Every text is compared byte by byte. Groups of texts with a difference
(a normalizer changed characters, a special token absorbed adjacent white space) are tokenized again with offsets, and
so are all texts of other tokenizers.

As in the tokenizer's own offsets, a token with a part of a character has the offsets of the whole character.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from qtune_service.ingest.records import RecordError
from qtune_service.samples import Sample


@dataclass(frozen=True, slots=True)
class Encoded:
    """A sample within the length limit."""

    sample: Sample
    truncated: bool  # the tail was cut off


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokenized samples. Sample s has tokens [offsets[s], offsets[s + 1])."""

    rows: NDArray[np.int64]  # (S,) ascending record index of each sample
    input_ids: NDArray[np.int32]  # (L,)
    loss_mask: NDArray[np.int8]  # (L,)
    offsets: NDArray[np.int64]  # (S + 1,)

    def choose(self, chosen: NDArray[np.bool_]) -> Tokens:
        """Return a selection of the samples. chosen: (S,)."""
        if chosen.all():
            return self
        sizes = np.diff(self.offsets)
        taken = np.repeat(chosen, sizes)
        return Tokens(self.rows[chosen], self.input_ids[taken], self.loss_mask[taken], offsets_of(sizes[chosen]))

    def without(self, records: Collection[int]) -> Tokens:
        """Return the samples without those of the given records."""
        return self.choose(~np.isin(self.rows, np.fromiter(records, np.int64, len(records)))) if records else self


MAX_ENDINGS = 32
"""Most common last tokens that are counted."""
MAX_BLANKS = 2
"""White space tokens that may follow an end token."""


@dataclass(frozen=True, slots=True)
class Endings:
    """Which tokens end the trained spans of samples. Batches are added up, because only a whole job is judged."""

    num_spans: int = 0
    num_stopped: int = 0
    """Spans that end in a stop token of the model."""
    last_tokens: Mapping[int, int] = field(default_factory=dict)
    """Token id -> number of spans that it ends, for the most common ones."""

    @classmethod
    def of(cls, tokens: Tokens, stop_ids: NDArray[np.int32], blank_ids: NDArray[np.int32]) -> Self:
        """Count the ends of trained spans. blank_ids: white space, which may follow an end token."""
        mask = tokens.loss_mask.copy()
        follows = np.zeros(len(mask), np.int8)
        follows[:-1] = mask[1:]
        follows[tokens.offsets[1:][np.diff(tokens.offsets) > 0] - 1] = 0  # the next sample
        at = np.flatnonzero((mask != 0) & (follows == 0))
        for _ in range(MAX_BLANKS):  # position 0 of a sample is never trained, so at - 1 is in the same sample
            at = at - (np.isin(tokens.input_ids[at], blank_ids) & (mask[at - 1] != 0))
        last = tokens.input_ids[at]
        ids, counts = np.unique(last, return_counts=True)
        found = Counter(dict(zip(ids.tolist(), counts.tolist(), strict=True)))
        return cls(len(last), int(np.isin(last, stop_ids).sum()), dict(found.most_common(MAX_ENDINGS)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        body = {"num_spans": self.num_spans, "num_stopped": self.num_stopped}
        return {**body, "last_tokens": {str(token): count for token, count in self.last_tokens.items()}}

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> Self:
        """Return what `to_dict` wrote; nothing for an empty body."""
        last_tokens = {int(token): count for token, count in body.get("last_tokens", {}).items()}
        return cls(body.get("num_spans", 0), body.get("num_stopped", 0), last_tokens)

    def __add__(self, other: Endings) -> Endings:
        last_tokens = dict((Counter(self.last_tokens) + Counter(other.last_tokens)).most_common(MAX_ENDINGS))
        return Endings(self.num_spans + other.num_spans, self.num_stopped + other.num_stopped, last_tokens)


NO_ENDINGS = Endings()


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Encoded samples of a batch of records, and the problems of the other records."""

    tokens: Tokens
    truncated: NDArray[np.bool_]  # (S,)
    problems: dict[int, RecordError]  # by record index
    notes: dict[str, int] = field(default_factory=dict)
    """Clause -> number of records, see Conversation.notes. Rejected records are not counted."""
    endings: Endings = field(default_factory=lambda: NO_ENDINGS)

    def renumbered(self, records: Sequence[int]) -> EncodedBatch:
        """Return the batch with record i renumbered as `records[i]`."""
        numbers = np.array(records, np.int64)
        problems = {records[row]: problem for row, problem in self.problems.items()}
        tokens = replace(self.tokens, rows=numbers[self.tokens.rows])
        return EncodedBatch(tokens, self.truncated, problems, self.notes, self.endings)

    def outcomes(self) -> list[Encoded | RecordError]:
        """Return one outcome for each record."""
        found: dict[int, Encoded | RecordError] = dict(self.problems)
        tokens, cuts = self.tokens, self.tokens.offsets[1:-1]
        parts = zip(np.split(tokens.input_ids, cuts), np.split(tokens.loss_mask, cuts), strict=True)
        for row, part, truncated in zip(tokens.rows.tolist(), parts, self.truncated.tolist(), strict=False):
            found[row] = Encoded(Sample(*part), truncated)
        return [found[i] for i in range(len(found))]


def limit_length(
    tokens: Tokens, problems: dict[int, RecordError], *, max_len: int, vocab_size: int | None
) -> EncodedBatch:
    """Truncate samples to `max_len` tokens, and reject samples that cannot be scored. problems: of other records."""
    sizes = np.diff(tokens.offsets)
    kept = np.minimum(sizes, max_len)
    inside = np.arange(len(tokens.input_ids)) - np.repeat(tokens.offsets[:-1], sizes) < np.repeat(kept, sizes)  # (L,)
    ids, mask = tokens.input_ids[inside], tokens.loss_mask[inside]
    offsets = offsets_of(kept)
    untrained = _sums(mask != 0, offsets) == 0
    foreign = _sums(ids >= vocab_size, offsets) > 0 if vocab_size is not None else np.zeros(len(kept), np.bool_)
    found_problems = dict(problems)
    for i in np.flatnonzero(untrained | foreign).tolist():
        if untrained[i]:
            where = f"the first {max_len} of its {sizes[i]} tokens" if sizes[i] > kept[i] else "it"
            problem = RecordError("no_trained_tokens", f"nothing in {where} is trained")
        else:
            largest = ids[offsets[i] : offsets[i + 1]].max()
            problem = RecordError("token_out_of_vocab", f"token id {largest}; the model knows {vocab_size}")
        found_problems[int(tokens.rows[i])] = problem
    good = ~(untrained | foreign)
    return EncodedBatch(Tokens(tokens.rows, ids, mask, offsets).choose(good), (sizes > kept)[good], found_problems)


def concatenated(batches: Sequence[tuple[int, EncodedBatch]]) -> EncodedBatch:
    """Concatenate batches of consecutive records, each given with the index of its first record."""
    tokens = [batch.tokens for _, batch in batches]
    sizes = [np.diff(part.offsets) for part in tokens]
    return EncodedBatch(
        Tokens(
            np.concatenate([np.empty(0, np.int64), *(batch.tokens.rows + first for first, batch in batches)]),
            np.concatenate([np.empty(0, np.int32), *(part.input_ids for part in tokens)]),
            np.concatenate([np.empty(0, np.int8), *(part.loss_mask for part in tokens)]),
            offsets_of(np.concatenate([np.empty(0, np.int64), *sizes])),
        ),
        np.concatenate([np.empty(0, np.bool_), *(batch.truncated for _, batch in batches)]),
        {row + first: problem for first, batch in batches for row, problem in batch.problems.items()},
        dict(sum((Counter(batch.notes) for _, batch in batches), Counter())),
        sum((batch.endings for _, batch in batches), NO_ENDINGS),
    )


def offsets_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offsets (S + 1,) of rows with the given sizes (S,)."""
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def _sums(flags: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of set flags (L,) of each row: (S,)."""
    return np.diff(np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))[offsets])


PROBE = "a b  \n\u00e9\u6f22"
MAX_MISSES = 4
"""Failed groups minus successful ones, after which offsets always come from the tokenizer."""


@dataclass(frozen=True, slots=True)
class LocatedTokens:
    """Tokens of S texts with character offsets. Text s has tokens [offsets[s], offsets[s + 1])."""

    ids: NDArray[np.int32]  # (L,)
    offsets: NDArray[np.int64]  # (S + 1,)
    begins: NDArray[np.int64]  # (L,) characters in its own text
    ends: NDArray[np.int64]  # (L,)


class TokenLocator:
    """Tokenize with character offsets by a Rust tokenizer, without adding special tokens."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        self._table: _ByteTable | None = _ByteTable.of(backend)
        self._misses = 0
        if self._by_bytes([PROBE], self._table) is None:
            self._table = None

    def locate(self, texts: Sequence[str]) -> LocatedTokens:
        """Tokenize texts."""
        if self._table is None or not texts:
            return self._by_offsets(texts)
        located = self._by_bytes(texts, self._table)
        self._misses += 1 if located is None else -1
        if self._misses > MAX_MISSES:
            self._table = None
        return located or self._by_offsets(texts)

    def _by_offsets(self, texts: Sequence[str]) -> LocatedTokens:
        encodings = self._backend.encode_batch(texts, add_special_tokens=False)
        pairs = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
        flat = np.fromiter(pairs, np.int64)  # (2 L,)
        return LocatedTokens(*_ids_of(encodings), begins=flat[::2], ends=flat[1::2])

    def _by_bytes(self, texts: Sequence[str], table: _ByteTable) -> LocatedTokens | None:
        """Return None if the bytes of the tokens differ from a text."""
        ids, offsets = _ids_of(self._backend.encode_batch_fast(texts, add_special_tokens=False))
        encoded = [text.encode() for text in texts]
        data = np.frombuffer(b"".join(encoded), np.uint8)  # (B,)
        ends = table.ends(ids)  # (L,) bytes of all texts, concatenated
        starts_of_texts = offsets_of(np.fromiter(map(len, encoded), np.int64, len(texts)))
        edges = np.concatenate(([0], ends))  # (L + 1,)
        if not np.array_equal(edges[offsets], starts_of_texts) or not table.spells(ids, edges, data):
            return None
        begins = edges[:-1]
        if (chars := _char_of_byte(data)) is not None:
            begins, ends = chars[begins], chars[ends - 1] + 1
            starts_of_texts = offsets_of(np.fromiter(map(len, texts), np.int64, len(texts)))
        shift = np.repeat(starts_of_texts[:-1], np.diff(offsets))
        return LocatedTokens(ids, offsets, begins=begins - shift, ends=ends - shift)


def _ids_of(encodings: Sequence[Any]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    lists = [encoding.ids for encoding in encodings]
    sizes = np.fromiter(map(len, lists), np.int64, len(lists))
    return np.fromiter(chain.from_iterable(lists), np.int32, int(sizes.sum())), offsets_of(sizes)


def _char_of_byte(data: NDArray[np.uint8]) -> NDArray[np.int64] | None:
    """Return the character index of each byte of UTF-8 text (B,); None for ASCII, where both are equal."""
    if not (data & 0x80).any():
        return None
    return np.cumsum((data & 0xC0) != 0x80, dtype=np.int64) - 1


@dataclass(frozen=True, slots=True)
class _ByteTable:
    """Bytes of each token of a byte-level vocabulary."""

    data: NDArray[np.uint8]
    starts: NDArray[np.int64]  # (V,) in data
    sizes: NDArray[np.int64]  # (V,)

    @classmethod
    def of(cls, backend: Any) -> Self:
        """Build the table. Tokens outside of the byte-level alphabet get bytes that match no text."""
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
        """Return the end of each token in the concatenated bytes (L,)."""
        return np.cumsum(self.sizes[ids])

    def spells(self, ids: NDArray[np.int32], edges: NDArray[np.int64], data: NDArray[np.uint8]) -> bool:
        """Return whether the concatenated bytes of the tokens equal `data`. edges: (L + 1,)."""
        sizes = self.sizes[ids]
        if len(data) != edges[-1] or not sizes.all():
            return False
        positions = np.repeat(self.starts[ids] - edges[:-1], sizes) + np.arange(len(data))
        return np.array_equal(self.data[positions], data)


def _byte_level_alphabet() -> dict[int, int]:
    """Return GPT-2's table from the characters of byte-level vocabularies to bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(plain)]
    return {byte: byte for byte in plain} | {256 + i: byte for i, byte in enumerate(others)}


_ALPHABET = _byte_level_alphabet()
