"""Samples as people and scripts are shown them: what is known of each, its own columns, its tokens as text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.query import Records, SampleTokens, read_rows, read_tokens
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.data import ExampleToken
from qtune_service.report.tokens import Decode, token_texts

FIELDS = (
    "index", "sample_id", "source", "line", "truncated", "quadrant", "kept", "perplexity", "mean_nll", "mean_entropy",
    "num_tokens", "error_rank", "entropy_rank",
)  # fmt: skip
PAGE, ROWS_PAGE = 500, 20_000
"""Samples that are in memory at a time: whole, and some columns of them."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample."""

    fields: Mapping[str, Any]
    """FIELDS, as far as the output has them, and others that were asked for."""
    own: Mapping[str, Any]
    """The record's own columns, by the names they have there."""
    tokens: tuple[ExampleToken, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    """What the question named: fields and own columns, by the names that conditions know."""

    @property
    def tokens_removed(self) -> int:
        """Trained tokens that are not trained on any more; of a dropped sample, all."""
        return sum(token.state == "removed" for token in self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain data: numbers that JSON has not are text, as in the manifest."""
        body = {**self.fields, "tokens_removed": self.tokens_removed, "own": self.own}
        return {**plain(body), "tokens": [plain(asdict(token)) for token in self.tokens]}


def shown_samples(
    finished: FinishedOutput, records: Records, index: NDArray[np.int64], named: Sequence[str] = ()
) -> Iterator[ShownSample]:
    """Some samples (k,) in the order asked for, with the fields that the question named besides FIELDS."""
    decode = finished.decoder()
    ours = [name for name in FIELDS if name in records.fields]
    own = {name: finished.own_columns[of.column] for name, of in records.fields.items() if of.is_own}
    ours += [name for name in named if name not in ours and name not in own]
    for start in range(0, len(index), PAGE):
        page = index[start : start + PAGE]
        rows = read_rows(records, page, [*ours, *own])
        for row, tokens in zip(rows, read_tokens(finished, records, page), strict=True):
            yield ShownSample(
                fields={name: row[name] for name in ours},
                own={own[name]: row[name] for name in own},
                tokens=tuple(_tokens(decode, tokens)),
                named={name: row[name] for name in named},
            )


def _tokens(decode: Decode, tokens: SampleTokens) -> Iterator[ExampleToken]:
    texts = token_texts(decode, tokens.input_ids.tolist())
    scores = (column.tolist() for column in (tokens.nll, tokens.entropy, tokens.smoothed))
    masks = tokens.loss_mask.tolist(), tokens.final_mask.tolist()
    for text, trained, kept, nll, entropy, score in zip(texts, *masks, *scores, strict=True):
        if trained:
            yield ExampleToken(text, "kept" if kept else "removed", nll, entropy, None if math.isnan(score) else score)
        else:
            yield ExampleToken(text, "prompt")


def plain(value: Any) -> Any:
    """A value as JSON can hold it: what it has no form for becomes text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)
