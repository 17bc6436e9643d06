"""The view of samples and tokens that the report, the service's page, analysis files and the terminal share.

`token_texts` returns the text that each token adds to the decoded sample. A character's bytes may be spread over
several tokens. Such tokens are decoded as a group: the first shows the text and the others show nothing. A group is
complete when its decoding no longer ends in U+FFFD. A character has at most four bytes and a token at least one, so a
U+FFFD that three further tokens did not resolve is in the data itself and stays with its token. Each decoding sees the
previous group as context (tokenizers drop a leading space at the start of a text) and nothing before it, so time is
linear in the length.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.query import Records, read_rows, read_tokens
from qtune_service.output.reader import FinishedOutput, SampleTokens
from qtune_service.report.data import TokenView

Decode = Callable[[list[int]], str]  # with special tokens, and without clean-up of spaces
UNKNOWN = "\N{REPLACEMENT CHARACTER}"
MAX_GROUP = 64  # tokens; a longer chain of characters across tokens is split there
SHOWN_AS_CODE = frozenset("\u200b\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff\u061c")


def token_texts(decode: Decode, ids: Sequence[int]) -> list[str]:
    """Return one text a token. Joined, they are the decoded sample."""
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
    """Return the number and text of the tokens from `start` that must be decoded together."""
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
    # A decoder may join broken bytes of the context with the piece. Then the piece is decoded alone.
    return both[len(before) :] if both.startswith(before) else decode(list(piece))


def token_views(decode: Decode, tokens: SampleTokens) -> tuple[TokenView, ...]:
    """Return the views of a sample's tokens, in order."""
    columns = (tokens.loss_mask, tokens.final_mask, tokens.nll, tokens.entropy, tokens.smoothed)
    texts = token_texts(decode, tokens.input_ids.tolist())
    return tuple(map(_view, texts, *(column.tolist() for column in columns)))


def _view(text: str, is_trained: bool, is_kept: bool, nll: float, entropy: float, score: float) -> TokenView:
    if not is_trained:
        return TokenView(text, "prompt")
    return TokenView(text, "kept" if is_kept else "removed", nll, entropy, None if math.isnan(score) else score)


def visible_text(text: str) -> str:
    """Return a text with signs for characters that are invisible or reorder others. Line ends and tabs stay."""
    return "".join(_visible(char) for char in text)


def _visible(char: str) -> str:
    if char in "\n\t":
        return char
    if char < " " or char == "\x7f":
        return chr(0x2421 if char == "\x7f" else 0x2400 + ord(char))  # Unicode's pictures of control codes
    if char in SHOWN_AS_CODE or unicodedata.category(char) in ("Cc", "Cs"):
        return f"⟨U+{ord(char):04X}⟩"
    return char


FIELDS = (
    "index", "sample_id", "source", "line", "truncated", "quadrant", "kept", "perplexity", "mean_nll", "mean_entropy",
    "num_tokens", "error_rank", "entropy_rank",
)  # fmt: skip
PAGE, ROWS_PAGE = 500, 20_000
"""Number of samples in memory at a time: whole ones, and some of their columns."""


@dataclass(frozen=True, slots=True)
class ShownSample:
    """A sample as it is shown."""

    fields: Mapping[str, Any]
    """FIELDS, as far as the output has them, and requested others."""
    own: Mapping[str, Any]
    """The record's own columns, by the names they have there."""
    tokens: tuple[TokenView, ...]
    named: Mapping[str, Any] = field(default_factory=dict)
    """The requested fields and own columns, by their names in conditions."""

    @property
    def tokens_removed(self) -> int:
        """Return the number of tokens that the job removes from the loss: for a dropped sample, all trained ones."""
        return sum(token.state == "removed" for token in self.tokens)

    def to_json(self) -> dict[str, Any]:
        """Return plain data. Numbers that JSON lacks are text, as in the manifest."""
        body = {**self.fields, "tokens_removed": self.tokens_removed, "own": self.own}
        return {**plain(body), "tokens": [plain(asdict(token)) for token in self.tokens]}


def shown_samples(
    finished: FinishedOutput, records: Records, index: NDArray[np.int64], named: Sequence[str] = ()
) -> Iterator[ShownSample]:
    """Yield some samples (k,) in this order, with FIELDS and the `named` fields."""
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
                own={own[name]: row[name] for name in own if name in row},
                tokens=token_views(decode, tokens),
                named={name: row.get(name) for name in named},
            )


def plain(value: Any) -> Any:
    """Return a value that JSON can represent. Others become text."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return value if value is None or isinstance(value, str | int) else str(value)
