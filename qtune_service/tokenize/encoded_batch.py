"""Encoded records as flat columns, with vectorized checks.

Records pass through Python one by one up to their text. From the tokenizer on, operations apply to whole columns. At
about 30 tokens a record this halves the cost of small arrays for each record.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

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


@dataclass(frozen=True, slots=True)
class EncodedBatch:
    """Encoded samples of a batch of records, and the problems of the other records."""

    tokens: Tokens
    truncated: NDArray[np.bool_]  # (S,)
    problems: dict[int, RecordError]  # by record index

    def renumbered(self, records: Sequence[int]) -> EncodedBatch:
        """Return the batch with record i renumbered as `records[i]`."""
        numbers = np.array(records, np.int64)
        problems = {records[row]: problem for row, problem in self.problems.items()}
        return EncodedBatch(replace(self.tokens, rows=numbers[self.tokens.rows]), self.truncated, problems)

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
    )


def offsets_of(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the offsets (S + 1,) of rows with the given sizes (S,)."""
    return np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))


def _sums(flags: NDArray[np.bool_], offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of set flags (L,) of each row: (S,)."""
    return np.diff(np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))[offsets])
