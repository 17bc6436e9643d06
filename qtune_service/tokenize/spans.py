"""Which characters of one rendering are trained: every assistant turn with its end-of-turn token, nothing else.

A template with `{% generation %}` markers says so itself; the marked spans are used as they are, once each is seen
to hold its turn's words (transformers counts wrongly inside macros). Without markers borders.py finds the turns and
proves them. Each span must hold its turn's words, and start after the one before ended. Otherwise the record is
refused: a mask is never guessed.

Borders: white space and anything else of the template after the end-of-turn token is cut. A token counts as
trained if it begins inside a span and ends inside it; one that begins earlier carries a piece of the prompt. Only
the special token that closes a turn may reach beyond its span, over white space that it swallows (`rstrip`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtune_service.tokenize.assistant_mask import Rendering, locate_turns, not_verified
from qtune_service.tokenize.chat_template import Span
from qtune_service.tokenize.encoded_batch import offsets_of
from qtune_service.tokenize.folding import split_reasoning
from qtune_service.tokenize.token_offsets import PlacedTokens


def trained_spans(rendering: Rendering) -> list[Span]:
    """Character spans of the text that are trained; in order, without overlap."""
    turns = [i for i, flag in enumerate(rendering.conversation.trained) if flag]
    parts = (
        _assign(rendering, turns)
        if rendering.marked is not None
        else [[span] for span in locate_turns(rendering, turns)]
    )
    for i, spans in zip(turns, parts, strict=True):
        _check_words(rendering, i, spans)
    flat = [_cut(rendering, span) for spans in parts for span in _joined(spans)]
    if any(left[1] > right[0] for left, right in pairwise(flat)):
        raise not_verified("that assistant turns do not overlap")
    return flat


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans that touch as one: a token may lie across the point where they meet."""
    out: list[Span] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            start = out.pop()[0]  # noqa: PLW2901
        out.append((start, end))
    return out


def token_masks(
    renderings: Sequence[Rendering], spans: Sequence[Sequence[Span]], tokens: PlacedTokens
) -> NDArray[np.int8]:
    """1 for tokens (L,) that lie in a span of their text; the first one of each text is 0."""
    mask = np.zeros(len(tokens.ids), dtype=np.int8)
    # All texts one behind the other, with a gap between, so that one search finds every token's span.
    bases = offsets_of(np.fromiter((len(r.text) + 1 for r in renderings), np.int64, len(renderings)))
    edges = np.array(
        [
            (base + start, base + stop, base + stop + _num_swallowed(rendering, (start, stop)))
            for base, rendering, own in zip(bases.tolist(), renderings, spans, strict=False)
            for start, stop in own
        ],
        np.int64,
    )  # (k, 3)
    if not len(edges):
        return mask
    base = np.repeat(bases[:-1], np.diff(tokens.offsets))  # (L,)
    begins, ends = tokens.begins + base, tokens.ends + base
    nearest = np.searchsorted(edges[:, 0], begins, side="right") - 1  # last span that starts at or before the token
    mask[(nearest >= 0) & (begins < edges[nearest, 1]) & (ends <= edges[nearest, 2])] = 1
    firsts = tokens.offsets[:-1]
    mask[firsts[firsts < tokens.offsets[1:]]] = 0
    return mask


def _assign(rendering: Rendering, turns: Sequence[int]) -> list[list[Span]]:
    """Marked spans of each trained turn: one to one where the numbers agree, else by each turn's borders."""
    marked = [span for span in rendering.marked or () if span[1] > span[0]]
    assistants = [i for i, m in enumerate(rendering.conversation.messages) if m["role"] == "assistant"]
    if len(marked) == len(assistants):
        by_turn = dict(zip(assistants, marked, strict=True))
        return [[by_turn[i]] for i in turns]
    borders = locate_turns(rendering, turns)
    return [[span for span in marked if start <= span[0] and span[1] <= end] for start, end in borders]


def _check_words(rendering: Rendering, i: int, spans: Sequence[Span]) -> None:
    message = rendering.conversation.messages[i]
    words = "".join(rendering.text[start:end] for start, end in spans)
    _, content = split_reasoning(message)
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    if content not in words or not all(name in words for name in names):
        raise not_verified(f"that turn {i}'s words lie in its span")


def _cut(rendering: Rendering, span: Span) -> Span:
    """The span up to its end-of-turn token. What follows that must be template, not words of the turn."""
    template, (start, end) = rendering.template, span
    words = rendering.text[start:end]
    mark = template.end_of_turn
    last = words.rfind(mark) if mark else -1
    if last >= 0 and template.is_template_only(words[last + len(mark) :]):
        return start, start + last + len(mark)
    closed = template.closing_end(words)
    return (start, start + closed) if closed is not None else span


def _num_swallowed(rendering: Rendering, span: Span) -> int:
    """White space after a span that its closing special token may swallow."""
    text, (start, stop) = rendering.text, span
    if rendering.template.closing_end(text[start:stop]) != stop - start:
        return 0
    end = stop
    while end < len(text) and text[end].isspace():
        end += 1
    return end - stop
