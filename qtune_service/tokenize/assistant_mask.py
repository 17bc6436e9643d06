"""Where the assistant's turns begin and end in the one text, where the template has no markers.

Nothing is believed that other renderings of the same conversation do not prove.
By skeleton, two renderings a conversation: the whole is rendered again with other words in all turns but the
assistant's. Putting the true words back must give the text itself, so the place of each is proven. Behind the words
before turn i must come what a prompt with such a turn ends in (learned once by rendering one): turn i starts there.
It ends behind the first end-of-turn token that is not among its own words, before the words that follow.
Short and plain conversations spare one of the two renderings: a conversation of the same roles, with other words in
all turns, is rendered once for all of them (its shape). Where the true words, put into the shape, give the text, and
the end-of-turn token stands between all turns and nowhere in the words, the text can be cut in that one way only.
Where that does not apply (system prompt or tools moved to the last user turn, an assistant's turn before, no
end-of-turn token, call ids behind a result), turn by turn, at two or three renderings each:
  start  1. render(messages[:i]) with the generation prompt, if it is a prefix of the text.
         2. Turn i - 1 gets other words, and the whole conversation and messages[:i] are both rendered. What follows
            those words at the end of the prompt must follow them in the conversation too, and from there on it must be
            the text to its last character: turn i starts there.
         3. The same with other words in turn i, up to the generation prompt before them. The first turn needs it.
  end    1. render(messages[:i + 1]), if it is a prefix of the text.
         2. The whole conversation with other words in turn i + 1. Up to the end-of-turn token of turn i it must be a
            prefix of the text, and those words must come later.
The trade-off: the second way costs turns x length; over-long texts are refused before it is tried.

Which characters of one rendering are trained: every assistant turn with its end-of-turn token, nothing else.

A template with `{% generation %}` markers says so itself; the marked spans are used as they are, once each is seen
to hold its turn's words (transformers counts wrongly inside macros). Without markers borders.py finds the turns and
proves them. Each span must hold its turn's words, and start after the one before ended. Otherwise the record is
refused: a mask is never guessed.

Borders: white space and anything else of the template after the end-of-turn token is cut. A token counts as
trained if it begins inside a span and ends inside it; one that begins earlier carries a piece of the prompt. Only
the special token that closes a turn may reach beyond its span, over white space that it swallows (`rstrip`).
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
from qtune_service.tokenize.encoded_batch import offsets_of
from qtune_service.tokenize.token_offsets import PlacedTokens

MAX_SHAPES = 256
"""Shapes that are kept; a dataset of ever other shapes has long conversations, where one rendering matters less."""


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation and the one text of it."""

    template: ChatTemplate
    conversation: Conversation
    text: str
    marked: tuple[Span, ...] | None  # by the template's generation markers


def locate_turns(rendering: Rendering, turns: Sequence[int]) -> list[Span]:
    """Character spans of the assistant turns named by index. Raises RecordError where one cannot be proven."""
    words = _prompt_words(rendering)
    spans = (_by_skeleton(rendering, i, words) for i in turns)
    return [span or _by_rules(rendering, i) for i, span in zip(turns, spans, strict=True)]


def not_verified(what: str) -> RecordError:
    """The refusal to guess a mask."""
    return RecordError(
        "mask_not_verified",
        f"cannot prove {what} in the chat template's text; put {{% generation %}} markers in the template",
    )


def _prompt_words(rendering: Rendering) -> dict[int, Span]:
    """Where the words of each turn that is not the assistant's stand; empty where that is not proven."""
    if PROBE in rendering.text:
        return {}
    return _words_by_shape(rendering) or _words_by_rendering(rendering)


def _words_by_rendering(rendering: Rendering) -> dict[int, Span]:
    messages, text = rendering.conversation.messages, rendering.text
    asked = [i for i, m in enumerate(messages) if m["role"] != "assistant"]
    probes = [{**m, "content": f"{PROBE}{i}x"} if m["role"] != "assistant" else m for i, m in enumerate(messages)]
    try:
        pieces = re.split(rf"{PROBE}(\d+)x", rendering.template.render(probes, rendering.conversation.tools))
    except RecordError:
        return {}
    if pieces[1::2] != [str(i) for i in asked]:
        return {}
    return dict(zip(asked, _fit(pieces[::2], [messages[i]["content"] for i in asked], text), strict=False))


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
    places = _fit(between, [message["content"] for message in messages], rendering.text)
    return {i: place for i, place in enumerate(places) if roles[i] != "assistant"}


def _render_shape(template: ChatTemplate, roles: Sequence[str]) -> list[str]:
    """What the template writes before, between and behind turns of these roles; empty where words could be confused."""
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
    """Places of the contents if they, put between the pieces, give the text; else none."""
    for words in (contents, [content.strip() for content in contents]):  # templates trim, or do not
        parts = [part for pair in zip(between, [*words, ""], strict=True) for part in pair]
        if "".join(parts) == text:
            return _places(between, words)
    return []


def _places(between: Sequence[str], words: Sequence[str]) -> list[Span]:
    places, position = [], 0
    for before, word in zip(between, words, strict=False):
        start = position + len(before)
        position = start + len(word)
        places.append((start, position))
    return places


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
    """What follows the last words of a prompt that ends in a turn like i - 1; kept for the template's lifetime."""
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
    """End in `text[start:stop]` of the first end-of-turn token that is not one of turn i's own words."""
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
    for tail in _tails_behind_probe(rendering, i):
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
    following = rendering.conversation.messages[i + 1]
    found = _render_with(rendering, i + 1, {**following, "content": PROBE})
    if found is None:
        return None
    other, at = found
    end = _own_end(rendering, i, other, start, at)
    return end if end is not None and rendering.text.startswith(other[:end]) else None


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
