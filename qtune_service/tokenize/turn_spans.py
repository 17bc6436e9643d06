"""Locate assistant turns in a rendered conversation, by other renderings of it. Every boundary is proven.

Skeleton method, two renderings a conversation: the conversation is rendered again with probe text in all turns except
the assistant's. Replacing the probes by the real content must reproduce the text, which proves the span of each. The
text after turn i - 1 must start with the end of a prompt that ends in such a turn (learned once by a rendering). Turn
i starts after it, and ends before the next turn's text: after the first end-of-turn token that is not part of its own
content, or where the junction starts, the text between turns of these kinds (learned once by the rules below).
Short plain conversations need one rendering: a conversation of the same roles with probe text in all turns is
rendered once for all of them (its shape). If the real content in the shape reproduces the text, and the end-of-turn
token is between all turns and in none of the contents, the text can be split in one way only.
If the method does not apply (system prompt or tools moved to the last user turn, a preceding assistant turn, call ids
after a result, an unknown junction), each turn takes some renderings:
  start  1. render(messages[:i]) with the generation prompt, if it is a prefix of the text.
         2. Turn i - 1 gets probe text, and the whole conversation and messages[:i] are rendered. The text after the
            probe at the end of the prompt must also follow the probe in the conversation, and the rest must equal the
            end of the text. Turn i starts after it.
         3. render(messages[:i]), if it differs from the text only in what closes the last turn. DeepSeek closes a
            list of results only before an answer, and Gemma joins answers in a row.
         4. Turn i gets probe text. The first turn needs this rule: it starts after the generation prompt that
            precedes the probe.
  end    1. render(messages[:i + 1]), if it is a prefix of the text. If it differs only in what closes the last turn
            (gpt-oss writes `<|return|>` there and `<|end|>` elsewhere), the turn ends with the token in its place.
            The same without the turn's reasoning, which templates drop from earlier turns.
         2. Turn i + 1 gets probe text. Up to the end-of-turn token of turn i the rendering must be a prefix of the
            text, and the probe must come later.
         3. Turn i gets probe text. What follows the probe must be the end of the text.
This costs turns x length, so over-long texts are rejected before (encoder.py).

What follows a turn's words belongs to the turn only if it is a token that closes turns: the end-of-turn token, a token
between a prompt and the header, or a stop token of the model. A token that opens the next turn never does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qtune_service.ingest.records import Message, RecordError
from qtune_service.tokenize.chat_template import ChatTemplate, Span
from qtune_service.tokenize.context import AdaptedConversation, split_reasoning
from qtune_service.tokenize.message_form import PROBE
from qtune_service.tokenize.trl_templates import training_template_for

MAX_SHAPES = 256  # datasets with more shapes have long conversations, where one rendering matters less
MAX_JUNCTION = 1000  # characters between turns; a longer text contains more than the template's own


@dataclass(frozen=True, slots=True)
class Rendering:
    """A conversation and its rendered text."""

    template: ChatTemplate
    conversation: AdaptedConversation
    text: str
    marked: tuple[Span, ...] | None  # spans of the generation markers
    notes: tuple[str, ...] = ()
    """What the record says and the text does not show, each a clause that is counted over records."""

    def render(self, messages: Sequence[Message]) -> str:
        """Render other turns with the tools and variables of this conversation. Raises RecordError."""
        return self.template.render(messages, self.conversation.tools, self.conversation.variables)

    def prompts(self, messages: Sequence[Message]) -> tuple[str, ...]:
        """Return the generation prompts after other turns. Raises RecordError."""
        return self.template.prompts(messages, self.conversation.tools, self.conversation.variables)


def locate_turns(rendering: Rendering, turns: Sequence[int]) -> list[Span]:
    """Return the character spans of assistant turns by index. Raises RecordError if one cannot be proven."""
    words = _prompt_words(rendering)
    located: dict[int, Span] = {}
    for i in turns:
        located[i] = _by_skeleton(rendering, i, words) or _by_rules(rendering, i, words, located)
    return [located[i] for i in turns]


def not_verified(rendering: Rendering, what: str) -> RecordError:
    """Return the error for a mask that cannot be proven. It names the template of TRL that has markers, if any."""
    advice = "give a template with {% generation %} markers by chat_template"
    if (known := training_template_for(rendering.template.source)) is not None:
        name, is_exact = known
        fits = "for this template" if is_exact else "for a similar template"
        advice += f", such as trl:{name}, TRL's training variant {fits}"
    return RecordError("mask_not_verified", f"cannot prove {what} in the chat template's text; {advice}")


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
        pieces = re.split(rf"{PROBE}(\d+)x", rendering.render(probes))
    except RecordError:
        return {}
    if pieces[1::2] != [str(i) for i in probed]:
        return {}
    return dict(zip(probed, _fit(pieces[::2], [messages[i]["content"] for i in probed], text), strict=False))


def _words_by_shape(rendering: Rendering) -> dict[int, Span]:
    template, messages, conversation = rendering.template, rendering.conversation.messages, rendering.conversation
    if conversation.tools or conversation.variables or any(len(message) != 2 for message in messages):
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


def _by_skeleton(rendering: Rendering, i: int, words: Mapping[int, Span]) -> Span | None:
    if i - 1 not in words:
        return None
    text, behind = rendering.text, words[i - 1][1]
    tail = next((t for t in _prompt_tails(rendering, i) if text.startswith(t, behind)), None)
    if tail is None:
        return None
    start = _behind_header(rendering, behind + len(tail))
    if i == len(rendering.conversation.messages) - 1:
        return start, len(text)
    if i + 1 not in words:
        return None
    stop = words[i + 1][0]
    end = _own_end(rendering, i, text, start, stop) or _end_by_junction(rendering, i, start, stop)
    return (start, end) if end is not None else None


def _prompt_tails(rendering: Rendering, i: int) -> tuple[str, ...]:
    """Return the ends of prompts after a turn like i - 1, cached with the template."""
    messages, tools = rendering.conversation.messages, rendering.conversation.tools
    if rendering.conversation.variables:
        return _tails_behind_probe(rendering, i)
    kept = rendering.template.tails
    key = (messages[i - 1]["role"], messages[0]["role"], bool(tools))
    if key not in kept:
        kept[key] = _tails_behind_probe(rendering, i)
    return kept[key]


def _tails_behind_probe(rendering: Rendering, i: int) -> tuple[str, ...]:
    messages = rendering.conversation.messages
    try:
        prompts = rendering.prompts([*messages[: i - 1], {**messages[i - 1], "content": PROBE}])
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


def _end_by_junction(rendering: Rendering, i: int, start: int, stop: int) -> int | None:
    """Return the end of turn i if a learned junction precedes the next turn's text."""
    junction, closing = rendering.template.junctions.get(_kind_of_junction(rendering, i), ("", 0))
    begin = stop - len(junction)
    return begin + closing if junction and begin > start and rendering.text.startswith(junction, begin) else None


def _learn_junction(rendering: Rendering, i: int, end: int, stop: int) -> None:
    """Keep the text between turn i and the next turn's text, with the token that closes turn i."""
    template, text = rendering.template, rendering.text
    closings = (token for token in template.special_tokens if template.closes_turns(token))
    closing = next((token for token in closings if text.endswith(token, 0, end)), "")
    junction = text[end - len(closing) : stop]
    if junction.strip() and len(junction) <= MAX_JUNCTION and not rendering.conversation.variables:
        template.junctions[_kind_of_junction(rendering, i)] = junction, len(closing)


def _kind_of_junction(rendering: Rendering, i: int) -> tuple[Any, ...]:
    messages = rendering.conversation.messages
    following = messages[i + 1]["role"], bool(rendering.conversation.tools), i + 2 == len(messages)
    return bool(messages[i].get("tool_calls")), bool(messages[i]["content"]), *following


def _by_rules(rendering: Rendering, i: int, words: Mapping[int, Span], located: dict[int, Span]) -> Span:
    """Locate a turn by its own renderings. located: spans of earlier turns."""
    rules = (_start_by_prefix, _start_after, _start_by_shared_prefix)
    start = next((found for rule in rules if (found := rule(rendering, i))), None)
    if start is None and (start := _start_before(rendering, i)) is not None and i > 0:
        start = max(start, _end_of_answer(rendering, i - 1, words, located))
    turn = rendering.conversation.name_of(i)
    if start is None:
        raise not_verified(rendering, f"where {turn} starts")
    start = _behind_header(rendering, start)
    ends = (rule(rendering, i, start) for rule in (_end_by_prefix, _end_by_next_probe, _end_by_own_probe))
    end = next((end for end in ends if end is not None), None)
    if end is None or end <= start:
        raise not_verified(rendering, f"where {turn} ends")
    if i + 1 in words and words[i + 1][0] > end:
        _learn_junction(rendering, i, end, words[i + 1][0])
    return start, end


def _end_of_answer(rendering: Rendering, i: int, words: Mapping[int, Span], located: dict[int, Span]) -> int:
    """Return the end of turn i, or 0 if it is not an assistant's. Gemma joins answers in a row under one header."""
    if rendering.conversation.messages[i]["role"] != "assistant":
        return 0
    if i not in located:
        located[i] = _by_rules(rendering, i, words, located)
    return located[i][1]


def _behind_header(rendering: Rendering, start: int) -> int:
    """Return the start behind a header that the template writes, but that is not in its generation prompt.

    Gemma's template for diffusion opens a turn after the result of a call, and adds no generation prompt there.
    """
    headers = rendering.template.visible_headers
    if not headers or rendering.text.endswith(headers, 0, start):
        return start
    return start + next((len(header) for header in headers if rendering.text.startswith(header, start)), 0)


def _start_by_prefix(rendering: Rendering, i: int) -> int | None:
    if i == 0:
        return None  # templates require a first message
    try:
        prompts = rendering.prompts(rendering.conversation.messages[:i])
    except RecordError:
        return None
    return next((len(prompt) for prompt in prompts if rendering.text.startswith(prompt)), None)


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


def _start_by_shared_prefix(rendering: Rendering, i: int) -> int | None:
    """Return the start by rule 3: where only what closes the last turn differs."""
    if i == 0:
        return None
    try:
        head = rendering.render(rendering.conversation.messages[:i])
    except RecordError:
        return None
    template, text = rendering.template, rendering.text
    shared = template.common_prefix(head, text)
    closes_last, header = head[shared:], template.header.strip()
    if not closes_last.strip() or not template.is_template_only(closes_last):
        return None
    return None if header and text[shared:].lstrip().startswith(header) else shared


def _start_before(rendering: Rendering, i: int) -> int | None:
    """Return the start by rule 4: after the generation prompt before probe text."""
    turn = rendering.conversation.messages[i]
    kept = {"tool_calls": turn["tool_calls"]} if turn.get("tool_calls") else {}  # a following result requires its call
    probe: Message = {"role": "assistant", "content": PROBE, **kept}
    found = _render_with(rendering, i, probe) if rendering.template.header else None
    if found is None:
        return None
    other, at = found
    for header in rendering.template.headers:
        start = other.rfind(header, 0, at) + len(header)
        if start >= len(header) and rendering.text.startswith(other[:start]):
            return start
    return None


def _end_by_prefix(rendering: Rendering, i: int, start: int) -> int | None:
    messages, text = rendering.conversation.messages, rendering.text
    if i == len(messages) - 1:
        return len(text)
    for turn in _forms_of_turn(messages[i]):
        try:
            head = rendering.render([*messages[:i], turn])
        except RecordError:
            continue
        if text.startswith(head):
            return len(head) if len(head) > start else None
        shared = rendering.template.common_prefix(head, text)
        closes_last = head[shared:]  # what the template writes only after the last turn
        if shared > start and (not closes_last or rendering.template.is_template_only(closes_last)):
            return _with_closing(rendering, shared) if closes_last.strip() else shared
    return None


def _forms_of_turn(turn: Message) -> Iterator[Message]:
    """Yield a turn, and the turn without its reasoning."""
    yield turn
    bare = {key: value for key, value in turn.items() if key != "reasoning_content"}
    if "</think>" in turn["content"]:
        bare["content"] = turn["content"].rpartition("</think>")[2].lstrip()
    if bare != turn:
        yield bare


def _end_by_next_probe(rendering: Rendering, i: int, start: int) -> int | None:
    following = rendering.conversation.messages[i + 1]
    found = _render_with(rendering, i + 1, {**following, "content": PROBE})
    if found is None:
        return None
    end = _own_end(rendering, i, found[0], start, found[1])
    return end if end is not None and rendering.text.startswith(found[0][:end]) else None


def _end_by_own_probe(rendering: Rendering, i: int, start: int) -> int | None:
    turn = rendering.conversation.messages[i]
    if turn.get("tool_calls"):
        return None  # calls follow the content
    found = _render_with(rendering, i, {"role": "assistant", "content": PROBE})
    if found is None:
        return None
    after = found[0][found[1] + len(PROBE) :]
    end = len(rendering.text) - len(after)
    if not after.strip() or end <= start or not rendering.text.endswith(after):
        return None
    return _with_closing(rendering, end)


def _with_closing(rendering: Rendering, end: int) -> int:
    """Return the end of the token that closes a turn whose words end at `end`, if there is one."""
    text = rendering.text
    behind = end
    while behind < len(text) and text[behind].isspace():
        behind += 1
    token = rendering.template.special_at(text, behind)
    return behind + len(token) if token is not None and rendering.template.closes_turns(token) else end


def _render_with(rendering: Rendering, i: int, probe: Message) -> tuple[str, int] | None:
    """Render the conversation with turn i replaced; return the text and the position of the probe."""
    messages = rendering.conversation.messages
    if PROBE in rendering.text:
        return None
    try:
        other = rendering.render([*messages[:i], probe, *messages[i + 1 :]])
    except RecordError:
        return None
    return (other, other.index(PROBE)) if other.count(PROBE) == 1 else None
