r"""Learn in which form a chat template takes turns, and convert turns to it.

Templates of vendors differ in what they read. Each property is learned once a template, by rendering small
conversations with probe text, and the first form that shows the probe is used:
  parts      a turn's content as text, or as a list of one part `{"type": "text", "text": ...}`, for each role
  reasoning  the key `reasoning_content`, `reasoning` or `thinking`, or a part of type `thinking`
  arguments  an object, or JSON text. Text is the form where the template concatenates strings, as DeepSeek's do, and
             where it would print an object in Python's notation. The text is the record's own, if it has one, else
             that of transformers' `tojson`, by which TRL's training templates write the same object
  content    beside calls: an empty text, or null, where the template shows calls only without content
  call ids   any, or nine letters and digits, as Mistral's templates require
  parallel   whether all calls of a turn are shown

Inline reasoning (`<think>...</think>` in the content) moves to the template's own place if the template writes
reasoning without `<think>`, as gpt-oss does in its channel `analysis`. Other templates read or keep the inline form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from qtune_service.ingest.records import Message
from qtune_service.ingest.tools import Arguments

PROBE = "Qx7probe9Xq"  # it survives trimming and JSON escapes
ANSWER = "Zk4answer2Kz"
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
_INLINE = re.compile(r"\s*(?:<think>)?((?:(?!</?think>).)*)</think>\s*", re.DOTALL)

Renderer: TypeAlias = Callable[[Sequence[Message]], str | None]
"""Render turns in the template's own form; None if the template fails."""


@dataclass(frozen=True, slots=True)
class MessageForm:
    """The form in which a template takes turns. The default form is that of ingest."""

    parts: frozenset[str] = frozenset()
    """Roles whose content is a list of parts."""
    reasoning: str | None = None
    """Key of reasoning, `part`, or None if the template shows no reasoning."""
    moves_inline: bool = False
    """Whether inline reasoning moves to the template's own place."""
    arguments_as_text: bool = False
    null_content: bool = False
    """Whether empty content beside calls is null."""
    nine_character_ids: bool = False
    parallel_calls: bool = True

    @property
    def is_default(self) -> bool:
        """Return whether turns stay as they are."""
        own_place = self.reasoning not in (None, REASONING_KEYS[0])
        return not (self.parts or own_place or self.arguments_as_text or self.null_content)

    def native(self, message: Message) -> Message:
        """Convert a turn of ingest to the template's form."""
        turn = dict(message)
        if self.reasoning not in (None, REASONING_KEYS[0]) and "reasoning_content" in turn:
            thought = turn.pop("reasoning_content")
            if thought and self.reasoning == "part":
                turn["content"] = [_thinking_part(thought), _text_part(turn["content"])]
            elif thought:
                turn[str(self.reasoning)] = thought
        if turn.get("tool_calls"):
            if self.arguments_as_text:
                turn["tool_calls"] = [_with_text_arguments(call) for call in turn["tool_calls"]]
            if self.null_content and turn["content"] == "":
                turn["content"] = None
        if turn["role"] in self.parts and isinstance(turn["content"], str):
            turn["content"] = [_text_part(turn["content"])]
        return turn

    def with_moved_reasoning(self, message: Message) -> Message:
        """Move inline reasoning at the start of an answer to `reasoning_content`, if the template requires it."""
        content = message["content"]
        if not self.moves_inline or message["role"] != "assistant" or "</think>" not in content:
            return message
        found = _INLINE.match(content)
        if found is None or "</think>" in content[found.end() :]:
            return message
        thoughts = [text for text in (message.get("reasoning_content"), found[1].strip()) if text]
        moved = {**message, "content": content[found.end() :]}
        return moved | {"reasoning_content": "\n\n".join(thoughts)} if thoughts else moved


def learn_form(render: Renderer, source: str) -> MessageForm:
    """Learn the form of a template by rendering probes."""
    form = MessageForm()
    for role in ("user", "assistant", "system", "tool"):
        if _wants_parts(render, form, role):
            form = replace(form, parts=form.parts | {role})
    form = _with_reasoning(render, form, source)
    return _with_calls(render, form) if "tool_calls" in source else form


def call_probe(*names: str, call_id: str = "call0000") -> list[dict[str, Any]]:
    """Return a call for each name, with ids of nine characters by default."""
    return [
        {"id": f"{call_id}{i}", "type": "function", "function": {"name": name, "arguments": {"kz": "Wm3value8Mw"}}}
        for i, name in enumerate(names)
    ]


def call_conversation(calls: Sequence[dict[str, Any]], *, result: str = "R") -> list[Message]:
    """Return a conversation with calls, their results and an answer."""
    return [
        {"role": "user", "content": "A"},
        {"role": "assistant", "content": "", "tool_calls": list(calls)},
        *({"role": "tool", "content": result, "tool_call_id": call["id"]} for call in calls),
        {"role": "assistant", "content": "B"},
    ]


def _render(render: Renderer, form: MessageForm, messages: Sequence[Message]) -> str | None:
    return render([form.native(message) for message in messages])


def _wants_parts(render: Renderer, form: MessageForm, role: str) -> bool:
    """Return whether a role's text is shown as a part, and not as text."""
    probe: list[Message] = [{"role": role, "content": PROBE}]
    around: dict[str, list[Message]] = {
        "user": probe,
        "assistant": [{"role": "user", "content": "A"}, *probe],
        "system": [*probe, {"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}],
        "tool": [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}, *probe],
    }
    text = _render(render, form, around[role])
    if text is not None and PROBE in text:
        return False
    as_parts = _render(render, replace(form, parts=form.parts | {role}), around[role])
    return as_parts is not None and PROBE in as_parts and f"'{PROBE}'" not in as_parts


def _with_reasoning(render: Renderer, form: MessageForm, source: str) -> MessageForm:
    """Learn where reasoning is shown."""
    answer: Message = {"role": "assistant", "content": ANSWER, "reasoning_content": PROBE}
    beside_a_call = [{"role": "user", "content": "A"}, {**answer, "content": "", "tool_calls": call_probe("f")}]
    places = [*(key for key in REASONING_KEYS if key in source), *(["part"] if "thinking" in source else [])]
    for turns in ([{"role": "user", "content": "A"}, answer], beside_a_call):
        for place in places:
            tried = replace(form, reasoning=place)
            text = _render(render, tried, turns)
            if text is not None and PROBE in text and f"'{PROBE}'" not in text:
                return replace(tried, moves_inline="<think>" not in text)
    return form


def _with_calls(render: Renderer, form: MessageForm) -> MessageForm:
    """Learn the form of calls."""
    name = f"{PROBE}a"
    turns = call_conversation(call_probe(name))
    arguments = turns[1]["tool_calls"][0]["function"]["arguments"]
    for null_content in (False, True):
        for as_text in (False, True):
            tried = replace(form, arguments_as_text=as_text, null_content=null_content)
            text = _render(render, tried, turns)
            if text is not None and _shows_call(text, name, arguments, as_text=as_text):
                return _with_call_limits(render, tried)
    return form


def _shows_call(text: str, name: str, arguments: Mapping[str, str], *, as_text: bool) -> bool:
    """Return whether a call is shown with its arguments, not in Python's notation, and not as text inside text."""
    if as_text:
        return name in text and json.dumps(arguments, ensure_ascii=False) in text
    return name in text and all(f in text for pair in arguments.items() for f in pair) and repr(arguments) not in text


def _with_call_limits(render: Renderer, form: MessageForm) -> MessageForm:
    """Learn which ids are accepted, and whether parallel calls are shown."""
    foreign = _render(render, form, call_conversation(call_probe(f"{PROBE}a", call_id="call_1234567890")))
    names = (f"{PROBE}a", f"{PROBE}b")
    both = _render(render, form, call_conversation(call_probe(*names)))
    is_parallel = both is None or all(name in both for name in names)  # a template that refuses them says so itself
    return replace(form, nine_character_ids=foreign is None, parallel_calls=is_parallel)


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _thinking_part(text: str) -> dict[str, str]:
    return {"type": "thinking", "thinking": text}


def _with_text_arguments(call: Mapping[str, Any]) -> dict[str, Any]:
    function = call["function"]
    given = function["arguments"]
    text = given.text if isinstance(given, Arguments) else json.dumps(given, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": text}}
