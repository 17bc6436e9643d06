"""Find the characters of a rendered conversation that are trained, and turn them into token masks.

Every assistant turn is trained with its end-of-turn token, and nothing else. A template with `{% generation %}` markers
gives the spans itself. They are used once each is verified to contain its turn's text, because transformers counts
incorrectly inside macros. Without markers, turns are located by other renderings of the same conversation, and every
boundary is proven. Each span must contain its turn's text and start after the previous span. Otherwise the record is
rejected: a mask is never guessed.

Skeleton method, two renderings a conversation: the conversation is rendered again with probe text in all turns except
the assistant's. Replacing the probes by the real content must reproduce the text, which proves the span of each. The
text after turn i - 1 must start with the end of a prompt that ends in such a turn (learned once by a rendering). Turn
i starts after it, and ends after the first end-of-turn token that is not part of its own content, before the next
turn's text.
Short plain conversations need one rendering: a conversation of the same roles with probe text in all turns is
rendered once for all of them (its shape). If the real content in the shape reproduces the text, and the end-of-turn
token is between all turns and in none of the contents, the text can be split in one way only.
If the method does not apply (system prompt or tools moved to the last user turn, a preceding assistant turn, no end-
of-turn token, call ids after a result), each turn takes two or three renderings:
  start  1. render(messages[:i]) with the generation prompt, if it is a prefix of the text.
         2. Turn i - 1 gets probe text, and the whole conversation and messages[:i] are rendered. The text after the
            probe at the end of the prompt must also follow the probe in the conversation, and the rest must equal the
            end of the text. Turn i starts after it.
         3. Turn i gets probe text. The first turn needs this rule: it starts after the generation prompt that
            precedes the probe.
  end    1. render(messages[:i + 1]), if it is a prefix of the text.
         2. Turn i + 1 gets probe text. Up to the end-of-turn token of turn i the rendering must be a prefix of the
            text, and the probe must come later.
This costs turns x length, so over-long texts are rejected before (encoder.py).

White space and other template text after the end-of-turn token is cut off. A token is trained if it starts and ends
inside a span. A token that starts earlier contains a part of the prompt. Only the special token that closes a turn may
end outside of its span, over white space that it absorbs (`rstrip`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from qtune_service.ingest.records import Conversation, Message, RecordError
from qtune_service.tokenize.chat_template import PROBE, ChatTemplate, Span, split_reasoning
from qtune_service.tokenize.encoded_batch import LocatedTokens, offsets_of

MAX_SHAPES = 256
"""Cached shapes. Datasets with more shapes have long conversations, where one rendering matters less."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation and its rendered text."""

    template: ChatTemplate
    conversation: Conversation
    text: str
    marked: tuple[Span, ...] | None  # spans of the generation markers


def locate_turns(rendering: Rendering, turns: Sequence[int]) -> list[Span]:
    """Return the character spans of assistant turns by index. Raises RecordError if one cannot be proven."""
    words = _prompt_words(rendering)
    spans = (_by_skeleton(rendering, i, words) for i in turns)
    return [span or _by_rules(rendering, i) for i, span in zip(turns, spans, strict=True)]


def not_verified(what: str) -> RecordError:
    """Return the error for a mask that cannot be proven."""
    return RecordError(
        "mask_not_verified",
        f"cannot prove {what} in the chat template's text; put {{% generation %}} markers in the template",
    )


def _prompt_words(rendering: Rendering) -> dict[int, Span]:
    """Return the spans of the text of other turns than the assistant's; empty if they cannot be proven."""
    if PROBE in rendering.text:
        return {}
    return _words_by_shape(rendering) or _words_by_rendering(rendering)


def _words_by_rendering(rendering: Rendering) -> dict[int, Span]:
    messages, text = rendering.conversation.messages, rendering.text
    probed = [i for i, m in enumerate(messages) if m["role"] != "assistant"]
    probes = [{**m, "content": f"{PROBE}{i}x"} if m["role"] != "assistant" else m for i, m in enumerate(messages)]
    try:
        pieces = re.split(rf"{PROBE}(\d+)x", rendering.template.render(probes, rendering.conversation.tools))
    except RecordError:
        return {}
    if pieces[1::2] != [str(i) for i in probed]:
        return {}
    return dict(zip(probed, _fit(pieces[::2], [messages[i]["content"] for i in probed], text), strict=False))


def _words_by_shape(rendering: Rendering) -> dict[int, Span]:
    template, messages = rendering.template, rendering.conversation.messages
    if rendering.conversation.tools or any(len(message) != 2 for message in messages):
        return {}
    roles = tuple(message["role"] for message in messages)
    if (between := template.shapes.get(roles)) is None:
        if len(template.shapes) >= MAX_SHAPES:
            return {}
        between = template.shapes[roles] = _render_shape(template, roles)
    mark = template.end_of_turn
    if not between or rendering.text.count(mark) != sum(piece.count(mark) for piece in between):
        return {}
    spans = _fit(between, [message["content"] for message in messages], rendering.text)
    return {i: span for i, span in enumerate(spans) if roles[i] != "assistant"}


def _render_shape(template: ChatTemplate, roles: Sequence[str]) -> list[str]:
    """Return the template text around turns of these roles; empty if turns are not clearly separated."""
    probes = [{"role": role, "content": f"{PROBE}{i}x"} for i, role in enumerate(roles)]
    try:
        pieces = re.split(rf"{PROBE}(\d+)x", template.render(probes))
    except RecordError:
        return []
    between = pieces[::2]
    is_whole = pieces[1::2] == [str(i) for i in range(len(roles))]
    is_marked = bool(template.end_of_turn) and all(template.end_of_turn in piece for piece in between[1:-1])
    return between if is_whole and is_marked else []


def _fit(between: Sequence[str], contents: Sequence[str], text: str) -> list[Span]:
    """Return the spans of the contents if pieces and contents form the text, else nothing."""
    for words in (contents, [content.strip() for content in contents]):  # some templates trim
        parts = [part for pair in zip(between, [*words, ""], strict=True) for part in pair]
        if "".join(parts) == text:
            return _content_spans(between, words)
    return []


def _content_spans(between: Sequence[str], words: Sequence[str]) -> list[Span]:
    spans: list[Span] = []
    position = 0
    for before, word in zip(between, words, strict=False):
        start = position + len(before)
        position = start + len(word)
        spans.append((start, position))
    return spans


def _by_skeleton(rendering: Rendering, i: int, words: dict[int, Span]) -> Span | None:
    if i - 1 not in words:
        return None
    text, behind = rendering.text, words[i - 1][1]
    tail = next((t for t in _prompt_tails(rendering, i) if text.startswith(t, behind)), None)
    if tail is None:
        return None
    start = behind + len(tail)
    if i == len(rendering.conversation.messages) - 1:
        return start, len(text)
    end = _own_end(rendering, i, text, start, words[i + 1][0]) if i + 1 in words else None
    return (start, end) if end is not None else None


def _prompt_tails(rendering: Rendering, i: int) -> tuple[str, ...]:
    """Return the ends of prompts after a turn like i - 1, cached with the template."""
    messages, tools = rendering.conversation.messages, rendering.conversation.tools
    kept = rendering.template.tails
    key = (messages[i - 1]["role"], messages[0]["role"], bool(tools))
    if key not in kept:
        kept[key] = _tails_behind_probe(rendering, i)
    return kept[key]


def _tails_behind_probe(rendering: Rendering, i: int) -> tuple[str, ...]:
    messages, tools = rendering.conversation.messages, rendering.conversation.tools
    try:
        prompts = rendering.template.prompts([*messages[: i - 1], {**messages[i - 1], "content": PROBE}], tools)
    except RecordError:
        return ()
    return tuple(prompt.rpartition(PROBE)[2] for prompt in prompts if prompt.count(PROBE) == 1)


def _own_end(rendering: Rendering, i: int, text: str, start: int, stop: int) -> int | None:
    """Return the end of the first end-of-turn token in `text[start:stop]` outside of turn i's own content."""
    message, mark = rendering.conversation.messages[i], rendering.template.end_of_turn
    thought, content = split_reasoning(message)
    if not mark or mark in thought:
        return None
    end = start
    for _ in range(1 + content.count(mark) + json.dumps(message.get("tool_calls")).count(mark)):
        found_at = text.find(mark, end, stop)
        if found_at < 0:
            return None
        end = found_at + len(mark)
    return end


def _by_rules(rendering: Rendering, i: int) -> Span:
    start = next((s for rule in (_start_by_prefix, _start_after, _start_before) if (s := rule(rendering, i))), None)
    if start is None:
        raise not_verified(f"where turn {i} starts")
    end = _end_by_prefix(rendering, i)
    if end is None:
        end = _end_by_probe(rendering, i, start)
    if end is None or end <= start:
        raise not_verified(f"where turn {i} ends")
    return start, end


def _start_by_prefix(rendering: Rendering, i: int) -> int | None:
    conversation = rendering.conversation
    if i == 0:
        return None  # templates require a first message
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
    """Return the start by rule 2: after the previous turn with probe text."""
    messages, text = rendering.conversation.messages, rendering.text
    found = _render_with(rendering, i - 1, {**messages[i - 1], "content": PROBE}) if i else None
    if found is None:
        return None
    other, at = found
    after = other[at + len(PROBE) :]
    for tail in _tails_behind_probe(rendering, i):
        start = len(text) - len(after) + len(tail)
        if after.startswith(tail) and text.startswith(other[:at]) and text.endswith(after) and start - len(tail) >= at:
            return start
    return None


def _start_before(rendering: Rendering, i: int) -> int | None:
    """Return the start by rule 3: after the generation prompt before probe text."""
    turn = rendering.conversation.messages[i]
    probe: Message = {"role": "assistant", "content": PROBE}
    if turn.get("tool_calls"):
        probe["tool_calls"] = turn["tool_calls"]  # a following result requires its call
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
    following = rendering.conversation.messages[i + 1]
    found = _render_with(rendering, i + 1, {**following, "content": PROBE})
    if found is None:
        return None
    other, at = found
    end = _own_end(rendering, i, other, start, at)
    return end if end is not None and rendering.text.startswith(other[:end]) else None


def _render_with(rendering: Rendering, i: int, probe: Message) -> tuple[str, int] | None:
    """Render the conversation with turn i replaced; return the text and the position of the probe."""
    messages, tools = rendering.conversation.messages, rendering.conversation.tools
    if PROBE in rendering.text:
        return None
    try:
        other = rendering.template.render([*messages[:i], probe, *messages[i + 1 :]], tools)
    except RecordError:
        return None
    return (other, other.index(PROBE)) if other.count(PROBE) == 1 else None


def trained_spans(rendering: Rendering) -> list[Span]:
    """Return the trained character spans, in order and without overlap. Raises RecordError."""
    turns = [i for i, flag in enumerate(rendering.conversation.trained) if flag]
    parts = (
        _assign(rendering, turns)
        if rendering.marked is not None
        else [[span] for span in locate_turns(rendering, turns)]
    )
    for i, spans in zip(turns, parts, strict=True):
        _check_words(rendering, i, spans)
    flat = [_cut(rendering, span) for spans in parts for span in _merge_adjacent(spans)]
    if any(left[1] > right[0] for left, right in pairwise(flat)):
        raise not_verified("that assistant turns do not overlap")
    return flat


def _merge_adjacent(spans: Sequence[Span]) -> list[Span]:
    """Merge adjacent spans, because a token may cross their boundary."""
    out: list[Span] = []
    for start, end in spans:
        if out and out[-1][1] == start:
            start = out.pop()[0]  # noqa: PLW2901
        out.append((start, end))
    return out


def token_masks(
    renderings: Sequence[Rendering], spans: Sequence[Sequence[Span]], tokens: LocatedTokens
) -> NDArray[np.int8]:
    """Return the mask (L,): 1 for tokens inside a span of their text, 0 for the first token of each text."""
    mask = np.zeros(len(tokens.ids), dtype=np.int8)
    # Concatenate all texts with gaps, so that one search finds the span of every token.
    bases = offsets_of(np.fromiter((len(r.text) + 1 for r in renderings), np.int64, len(renderings)))
    edges = np.array(
        [
            (base + start, base + stop, base + stop + _num_absorbed(rendering, (start, stop)))
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
    """Return the marked spans of each trained turn: one each if the counts agree, else those inside the turn."""
    marked = [span for span in rendering.marked or () if span[1] > span[0]]
    assistants = [i for i, m in enumerate(rendering.conversation.messages) if m["role"] == "assistant"]
    if len(marked) == len(assistants):
        by_turn = dict(zip(assistants, marked, strict=True))
        return [[by_turn[i]] for i in turns]
    located = locate_turns(rendering, turns)
    return [[span for span in marked if start <= span[0] and span[1] <= end] for start, end in located]


def _check_words(rendering: Rendering, i: int, spans: Sequence[Span]) -> None:
    message = rendering.conversation.messages[i]
    words = "".join(rendering.text[start:end] for start, end in spans)
    _, content = split_reasoning(message)
    names = [call["function"]["name"] for call in message.get("tool_calls", ())]
    if content not in words or not all(name in words for name in names):
        raise not_verified(f"that the content of turn {i} is in its span")


def _cut(rendering: Rendering, span: Span) -> Span:
    """Cut a span after its end-of-turn token, if only template text follows."""
    template, (start, end) = rendering.template, span
    words = rendering.text[start:end]
    mark = template.end_of_turn
    last = words.rfind(mark) if mark else -1
    if last >= 0 and template.is_template_only(words[last + len(mark) :]):
        return start, start + last + len(mark)
    closed = template.closing_end(words)
    return (start, start + closed) if closed is not None else span


def _num_absorbed(rendering: Rendering, span: Span) -> int:
    """Return the number of white space characters after a span that its closing special token may absorb."""
    text, (start, stop) = rendering.text, span
    if rendering.template.closing_end(text[start:stop]) != stop - start:
        return 0
    end = stop
    while end < len(text) and text[end].isspace():
        end += 1
    return end - stop
