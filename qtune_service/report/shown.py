"""Samples as people and scripts are shown them: what is known of each, its own columns, its tokens as text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.outputs.finished import FinishedOutput
from qtune_service.outputs.query import Records, SampleTokens, read_rows, read_tokens
from qtune_service.report.contents import ExampleToken
from qtune_service.report.tokens import Decode, token_texts

FIELDS = (
    "index", "sample_id", "source", "line", "truncated", "quadrant", "kept", "perplexity", "mean_nll", "mean_entropy",
    "num_tokens", "error_rank", "entropy_rank",
)  # fmt: skip
PAGE = 500
"""Samples that are in memory at a time."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """One sample."""

    fields: Mapping[str, Any]
    """FIELDS, as far as the output has them, and others that were asked for."""
    own: Mapping[str, Any]
    """The record's own columns, by the names they have there."""
    tokens: tuple[ExampleToken, ...]

    @property
    def tokens_removed(self) -> int:
        """Trained tokens that are not trained on any more; of a dropped sample, all."""
        return sum(token.state == "removed" for token in self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Plain data: numbers that JSON has not are text, as in the manifest."""
        body = {**self.fields, "tokens_removed": self.tokens_removed, "own": self.own}
        return {**plain(body), "tokens": [plain(asdict(token)) for token in self.tokens]}


def shown_samples(
    finished: FinishedOutput, records: Records, index: NDArray[np.int64], more: Iterable[str] = ()
) -> Iterator[ShownSample]:
    """Some samples (k,) in the order asked for, with more fields than FIELDS."""
    decode = finished.decoder()
    ours = [name for name in FIELDS if name in records.fields]
    own = {field.name: finished.own_columns[field.column] for field in records.fields.values() if field.is_own}
    ours += [name for name in more if name not in ours and name not in own]
    for start in range(0, len(index), PAGE):
        page = index[start : start + PAGE]
        rows = read_rows(records, page, [*ours, *own])
        for row, tokens in zip(rows, read_tokens(finished, records, page), strict=True):
            fields = {name: row[name] for name in ours}
            yield ShownSample(fields, {own[name]: row[name] for name in own}, tuple(_tokens(decode, tokens)))


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
