"""Find the characters of a rendered conversation that are trained, and turn them into token masks.

Every assistant turn is trained with the token that ends it, and nothing else. A template with `{% generation %}`
markers gives the spans itself. They are used as they are, once each is verified to contain its turn's text, because
transformers counts incorrectly inside macros. Surplus markers without text, such as Phi-3's final eos in TRL's training
template, belong to the turn before. Without markers, turns are located by other renderings (turn_spans.py). Each span
must contain its turn's text and start after the previous span. Otherwise the record is rejected: a mask is never
guessed.

Unmarked spans end with their end-of-turn token; white space and other template text after it is cut off. If the token
after that is a stop token of the model, such as GLM's `<|user|>`, it belongs to the span, because the model must learn
to write it. So does the token that also closes other turns, such as Cohere's. Training ranges of a turn cut their
characters out of its span.

A token is trained if it starts and ends inside a span. A token that starts earlier contains a part of the prompt. It is
trained only if that part is white space directly before the span and the token holds a part of the answer's text, as
after a header that ends in a space. Only the special token that closes a turn may end outside of its span, over white
space that it absorbs (`rstrip`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtune_service.ingest.records import Range
from qtune_service.tokenize.chat_template import Span
from qtune_service.tokenize.context import split_reasoning
from qtune_service.tokenize.encoded_batch import LocatedTokens, offsets_of
from qtune_service.tokenize.turn_spans import Rendering, locate_turns, not_verified


def trained_spans(rendering: Rendering) -> list[Span]:
    """Return the trained character spans, in order and without overlap. Raises RecordError."""
    turns = [i for i, flag in enumerate(rendering.conversation.trained) if flag]
    if rendering.marked is not None:
        parts = [_merge_adjacent(spans) for spans in _assign(rendering, rendering.marked, turns)]
    else:
        located = locate_turns(rendering, turns)
        parts = [[_closed(rendering, i, span)] for i, span in zip(turns, located, strict=True)]
    for i, spans in zip(turns, parts, strict=True):
        _check_words(rendering, i, spans)
    if rendering.conversation.ranges:
        parts = [_without_ranges(rendering, i, spans) for i, spans in zip(turns, parts, strict=True)]
    flat = [span for spans in parts for span in spans]
    if any(left[1] > right[0] for left, right in pairwise(flat)):
        raise not_verified(rendering, "that assistant turns do not overlap")
    return flat


def token_masks(
    renderings: Sequence[Rendering], spans: Sequence[Sequence[Span]], tokens: LocatedTokens
) -> NDArray[np.int8]:
    """Return the mask (L,): 1 for tokens inside a span of their text, 0 for the first token of each text."""
    mask = np.zeros(len(tokens.ids), dtype=np.int8)
    # Concatenate all texts with gaps, so that one search finds the span of every token.
    bases = offsets_of(np.fromiter((len(r.text) + 1 for r in renderings), np.int64, len(renderings)))
    owned = [
        (base, rendering, span)
        for base, rendering, own in zip(bases.tolist(), renderings, spans, strict=False)
        for span in own
    ]
    edges = np.array(
        [(base + span[0], base + span[1], base + span[1] + _num_absorbed(item, span)) for base, item, span in owned],
        np.int64,
    )  # (k, 3)
    if not len(edges):
        return mask
    base = np.repeat(bases[:-1], np.diff(tokens.offsets))  # (L,)
    begins, ends = tokens.begins + base, tokens.ends + base
    nearest = np.searchsorted(edges[:, 0], begins, side="right") - 1  # last span that starts at or before the token
    mask[(nearest >= 0) & (begins < edges[nearest, 1]) & (ends <= edges[nearest, 2])] = 1
    first = np.minimum(np.searchsorted(begins, edges[:, 0]), max(len(begins) - 1, 0))
    for i in np.flatnonzero(begins[first] != edges[:, 0]).tolist():  # no token starts with the span
        base_of_text, rendering, span = owned[i]
        if (found := _white_space_around(rendering.text, span)) is not None:
            space, word = found[0] + base_of_text, found[1] + base_of_text
            token = int(np.searchsorted(begins, word, side="right")) - 1  # the one that holds the first word's start
            if space <= begins[token] < edges[i, 0] and ends[token] > word:
                mask[token] = 1
    firsts = tokens.offsets[:-1]
    mask[firsts[firsts < tokens.offsets[1:]]] = 0
    return mask


def _white_space_around(text: str, span: Span) -> Span | None:
    """Return the start of white space before a span, and the start of the first word in it; None without both."""
    space, word = span[0], span[0]
    while space > 0 and text[space - 1].isspace():
        space -= 1
    while word < span[1] and text[word].isspace():
        word += 1
    return (space, word) if space < span[0] and word < span[1] else None


def _merge_adjacent(spans: Sequence[Span]) -> list[Span]:
    """Merge adjacent spans, because a token may cross their boundary."""
    out: list[Span] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            start = out.pop()[0]  # noqa: PLW2901
        out.append((start, end))
    return out


def _assign(rendering: Rendering, marked: Sequence[Span], turns: Sequence[int]) -> list[list[Span]]:
    """Return the marked spans of each trained turn.

    If the counts agree, each turn has one, perhaps after merging adjacent spans, or with surplus spans that hold only
    special tokens and white space, which belong to the turn before. Else the spans inside the located turn are used.
    """
    marked = [span for span in marked if span[1] > span[0]]
    assistants = [i for i, m in enumerate(rendering.conversation.messages) if m["role"] == "assistant"]
    if len(marked) == len(assistants):
        by_span = dict(zip(assistants, marked, strict=True))
        return [[by_span[i]] for i in turns]
    for groups in ([[span] for span in _merge_adjacent(marked)], _grouped(rendering, marked)):
        if len(groups) == len(assistants):
            by_turn = dict(zip(assistants, groups, strict=True))
            return [by_turn[i] for i in turns]
    located = locate_turns(rendering, turns)
    return [[span for span in marked if start <= span[0] and span[1] <= end] for start, end in located]


def _grouped(rendering: Rendering, marked: Sequence[Span]) -> list[list[Span]]:
    """Return groups of a span with text and the spans without text behind it."""
    groups: list[list[Span]] = []
    for start, end in marked:
        if groups and rendering.template.is_template_only(rendering.text[start:end]):
            groups[-1].append((start, end))
        else:
            groups.append([(start, end)])
    return groups


def _check_words(rendering: Rendering, i: int, spans: Sequence[Span]) -> None:
    message = rendering.conversation.messages[i]
    words = "".join(rendering.text[start:end] for start, end in spans)
    _, content = split_reasoning(message)
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    if content not in words or not all(name in words for name in names):
        raise not_verified(rendering, f"that the content of {rendering.conversation.name_of(i)} is in its span")


def _closed(rendering: Rendering, i: int, span: Span) -> Span:
    """Cut a span after its end-of-turn token if only template text follows, and add a stop token behind it."""
    template, text, (start, end) = rendering.template, rendering.text, span
    mark = template.end_of_turn
    if not mark or not text.endswith(mark, start, end):
        end = start + _cut(rendering, i, text[start:end])
    elif template.stops_at_end_of_turn:
        return span
    for closings in (template.stops, template.closings):
        if closings and not text.endswith(closings, start, end):
            end += len(next((token for token in closings if text.startswith(token, end)), ""))
    return start, end


def _cut(rendering: Rendering, i: int, words: str) -> int:
    """Return the length of turn i's text up to its end-of-turn token, if only template text follows."""
    template = rendering.template
    mark, content = template.end_of_turn, rendering.conversation.messages[i]["content"].strip()
    own = words.rfind(content) if content else -1
    last = words.rfind(mark, own + len(content) if own >= 0 else 0) if mark else -1  # not in the turn's own text
    if last >= 0 and template.is_template_only(words[last + len(mark) :]):
        return last + len(mark)
    closed = template.closing_end(words)
    return closed if closed is not None else len(words)


def _without_ranges(rendering: Rendering, i: int, spans: Sequence[Span]) -> list[Span]:
    """Return the spans of turn i without the characters of its content that are not trained."""
    ranges = rendering.conversation.ranges.get(i)
    if not ranges:
        return list(spans)
    start = _content_start(rendering, i, spans)
    out = list(spans)
    for first, last in _untrained(ranges, len(rendering.conversation.messages[i]["content"])):
        low, high = start + first, start + last
        pieces = ((a, b) for begin, end in out for a, b in ((begin, min(end, low)), (max(begin, high), end)))
        out = [(a, b) for a, b in pieces if a < b]
    return out


def _untrained(ranges: Sequence[Range], size: int) -> Iterator[Span]:
    return (
        (start, min(stop, size)) for start, stop, is_trained in ranges if not is_trained and start < min(stop, size)
    )


def _content_start(rendering: Rendering, i: int, spans: Sequence[Span]) -> int:
    """Return where the content of turn i would start in the text, counting characters that the template trims."""
    content = rendering.conversation.messages[i]["content"]
    words = content.strip()
    found = [at for start, end in spans if (at := rendering.text.find(words, start, end)) >= 0]
    again = [at for start, end in spans if (at := rendering.text.rfind(words, start, end)) >= 0]
    if not words or len(found) != 1 or found != again:
        raise not_verified(rendering, f"where the training ranges of {rendering.conversation.name_of(i)} are")
    return int(found[0] - content.index(words))


def _num_absorbed(rendering: Rendering, span: Span) -> int:
    """Return the number of white space characters after a span that its closing special token may absorb."""
    text, (start, stop) = rendering.text, span
    if rendering.template.closing_end(text[start:stop]) != stop - start:
        return 0
    end = stop
    while end < len(text) and text[end].isspace():
        end += 1
    return end - stop
