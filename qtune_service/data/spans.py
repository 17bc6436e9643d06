"""Which characters of one rendering are trained: every assistant turn with its end-of-turn token, nothing else.

A template with `{% generation %}` markers says so itself; the marked spans are used as they are, once each is seen
to hold its turn's words (transformers counts wrongly inside macros). Without markers the borders of turn i are
found by rendering, and nothing is believed that does not show in the one full text:
  start  1. render(messages[:i]) with the generation prompt, if it is a prefix of the text.
         2. Templates that write earlier turns anew once later ones exist (reasoning dropped, system prompt or tools
            moved to the last user turn) fail that. Then turn i - 1 gets other words, and the whole conversation and
            messages[:i] are both rendered. What follows those words at the end of the prompt must follow them in the
            conversation too, and from there on it must be the text to its last character: turn i starts there.
         3. The same with other words in turn i, up to the generation prompt before them. The first turn needs it.
  end    1. render(messages[:i + 1]), if it is a prefix of the text.
         2. The whole conversation with other words in turn i + 1. Up to the end-of-turn token of turn i (the first
            that is not among its own words) it must be a prefix of the text, and those words must come later.
Each span must then hold its turn's words, and start after the one before ended. Otherwise the record is refused:
a mask is never guessed. Rule 1 holds for most templates and costs two renderings a turn, so a long conversation
costs turns x length; rendering is some microseconds a turn, and over-long texts are refused before.

Borders: white space and anything else of the template after the end-of-turn token is cut. A token counts as
trained if it begins inside a span and ends inside it; one that begins earlier carries a piece of the prompt. Only
the special token that closes a turn may reach beyond its span, over white space that it swallows (`rstrip`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtune_service.data.folding import split_reasoning
from qtune_service.data.records import Conversation, Message, RecordError
from qtune_service.data.template import PROBE, ChatTemplate, Span


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation and the one text of it."""

    template: ChatTemplate
    conversation: Conversation
    text: str
    marked: tuple[Span, ...] | None  # by the template's generation markers


def trained_spans(rendering: Rendering) -> list[Span]:
    """Character spans of the text that are trained; in order, without overlap."""
    turns = [i for i, flag in enumerate(rendering.conversation.trained) if flag]
    parts = _assign(rendering, turns) if rendering.marked is not None else [[_locate(rendering, i)] for i in turns]
    for i, spans in zip(turns, parts, strict=True):
        _check_words(rendering, i, spans)
    flat = [_cut(rendering, span) for spans in parts for span in _joined(spans)]
    if any(left[1] > right[0] for left, right in pairwise(flat)):
        raise _not_verified("that assistant turns do not overlap")
    return flat


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Spans that touch as one: a token may lie across the point where they meet."""
    out: list[Span] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            start = out.pop()[0]  # noqa: PLW2901
        out.append((start, end))
    return out


def token_mask(rendering: Rendering, spans: Sequence[Span], offsets: NDArray[np.int32]) -> NDArray[np.int8]:
    """1 for tokens that lie in a span; position 0 is 0. `offsets: (T, 2)` characters."""
    mask = np.zeros(len(offsets), dtype=np.int8)  # (T,)
    if not spans or not len(offsets):
        return mask
    begins, ends = offsets[:, 0], offsets[:, 1]
    starts = np.array([start for start, _ in spans])  # (k,)
    stops = np.array([stop for _, stop in spans])
    limits = np.array([stop + _num_swallowed(rendering, (start, stop)) for start, stop in spans])
    nearest = np.searchsorted(starts, begins, side="right") - 1  # (T,) last span that starts at or before the token
    mask[(nearest >= 0) & (begins < stops[nearest]) & (ends <= limits[nearest])] = 1
    mask[0] = 0
    return mask


def _locate(rendering: Rendering, i: int) -> Span:
    start = next((s for rule in (_start_by_prefix, _start_after, _start_before) if (s := rule(rendering, i))), None)
    if start is None:
        raise _not_verified(f"where turn {i} starts")
    end = _end_by_prefix(rendering, i)
    if end is None:
        end = _end_by_probe(rendering, i, start)
    if end is None or end <= start:
        raise _not_verified(f"where turn {i} ends")
    return start, end


def _start_by_prefix(rendering: Rendering, i: int) -> int | None:
    conversation = rendering.conversation
    if i == 0:
        return None  # templates read the first message
    try:
        prompts = rendering.template.prompts(conversation.messages[:i], conversation.tools)
    except RecordError:
        return None
    return next((len(prompt) for prompt in prompts if rendering.text.startswith(prompt)), None)


def _end_by_prefix(rendering: Rendering, i: int) -> int | None:
    conversation = rendering.conversation
    if i == len(conversation.messages) - 1:
        return len(rendering.text)
    try:
        head = rendering.template.render(conversation.messages[: i + 1], conversation.tools)
    except RecordError:
        return None
    return len(head) if rendering.text.startswith(head) else None


def _start_after(rendering: Rendering, i: int) -> int | None:
    """Rule 2: behind the turn before, whose words are replaced."""
    messages, text = rendering.conversation.messages, rendering.text
    found = _render_with(rendering, i - 1, {**messages[i - 1], "content": PROBE}) if i else None
    if found is None:
        return None
    other, at = found
    after = other[at + len(PROBE) :]
    try:
        prompts = rendering.template.prompts(
            [*messages[: i - 1], {**messages[i - 1], "content": PROBE}], rendering.conversation.tools
        )
    except RecordError:
        return None
    for tail in (prompt.rpartition(PROBE)[2] for prompt in prompts if prompt.count(PROBE) == 1):
        start = len(text) - len(after) + len(tail)
        if after.startswith(tail) and text.startswith(other[:at]) and text.endswith(after) and start - len(tail) >= at:
            return start
    return None


def _start_before(rendering: Rendering, i: int) -> int | None:
    """Rule 3: behind the generation prompt before the turn's own words, which are replaced."""
    turn = rendering.conversation.messages[i]
    probe: Message = {"role": "assistant", "content": PROBE}
    if turn.get("tool_calls"):
        probe["tool_calls"] = turn["tool_calls"]  # a result that follows must have its call
    found = _render_with(rendering, i, probe) if rendering.template.header else None
    if found is None:
        return None
    other, at = found
    for header in rendering.template.headers():
        start = other.rfind(header, 0, at) + len(header)
        if start >= len(header) and rendering.text.startswith(other[:start]):
            return start
    return None


def _end_by_probe(rendering: Rendering, i: int, start: int) -> int | None:
    """Behind the first end-of-turn token that is not one of the turn's own words."""
    messages, mark = rendering.conversation.messages, rendering.template.end_of_turn
    found = _render_with(rendering, i + 1, {**messages[i + 1], "content": PROBE})
    thought, content = split_reasoning(messages[i])
    if found is None or not mark or mark in thought:
        return None
    other, at = found
    end = start
    for _ in range(1 + content.count(mark) + json.dumps(messages[i].get("tool_calls")).count(mark)):
        found_at = other.find(mark, end, at)
        if found_at < 0:
            return None
        end = found_at + len(mark)
    return end if rendering.text.startswith(other[:end]) else None


def _render_with(rendering: Rendering, i: int, probe: Message) -> tuple[str, int] | None:
    """The conversation with turn i replaced, and where the probe's words stand in it."""
    messages, tools = rendering.conversation.messages, rendering.conversation.tools
    if PROBE in rendering.text:
        return None
    try:
        other = rendering.template.render([*messages[:i], probe, *messages[i + 1 :]], tools)
    except RecordError:
        return None
    return (other, other.index(PROBE)) if other.count(PROBE) == 1 else None


def _assign(rendering: Rendering, turns: Sequence[int]) -> list[list[Span]]:
    """Marked spans of each trained turn: one to one where the numbers agree, else by each turn's borders."""
    marked = [span for span in rendering.marked or () if span[1] > span[0]]
    assistants = [i for i, m in enumerate(rendering.conversation.messages) if m["role"] == "assistant"]
    if len(marked) == len(assistants):
        by_turn = dict(zip(assistants, marked, strict=True))
        return [[by_turn[i]] for i in turns]
    borders = [_locate(rendering, i) for i in turns]
    return [[span for span in marked if start <= span[0] and span[1] <= end] for start, end in borders]


def _check_words(rendering: Rendering, i: int, spans: Sequence[Span]) -> None:
    message = rendering.conversation.messages[i]
    words = "".join(rendering.text[start:end] for start, end in spans)
    _, content = split_reasoning(message)
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    if content not in words or not all(name in words for name in names):
        raise _not_verified(f"that turn {i}'s words lie in its span")


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


def _not_verified(what: str) -> RecordError:
    return RecordError(
        "mask_not_verified",
        f"cannot prove {what} in the chat template's text; put {{% generation %}} markers in the template",
    )
