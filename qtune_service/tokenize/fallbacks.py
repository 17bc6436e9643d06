r"""Move content that a chat template cannot render to a place where it can.

A template without tools or system role omits them silently. The fallbacks keep the whole context, in this order and
form:
  developer turn   becomes a system turn
  reasoning        `<think>\nREASONING\n</think>\n\nCONTENT`, the form in which reasoning models write it
  tools            JSON, one a line, after the system prompt
  tool_calls       JSON text `{"name": ..., "arguments": {...}}` after the content; several calls as a list
  tool results     user turns; several in a row are joined by newlines
  system turn      before the first user turn, two newlines between
Inline reasoning moves to the template's own place where message_form.py says so, and calls get ids where the template
reads them. Turns keep the numbers that they have in the record, and training ranges follow the content.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qtune_service.ingest.records import Conversation, Message, Range, RecordError
from qtune_service.tokenize.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class AdaptedConversation:
    """A conversation after the fallbacks, as it is rendered."""

    messages: Sequence[Message]
    tools: list[dict[str, Any]] | None
    trained: Sequence[bool]  # one flag a message
    first_turn: int = 0
    """Index of the record's first own turn, where the turns are those of the record."""
    numbers: Sequence[int] = ()
    """Number of each turn in the record, from 1; 0 for a system turn from elsewhere. Empty without changes."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """The record's variables for the template."""
    ranges: Mapping[int, Sequence[Range]] = field(default_factory=dict)

    def name_of(self, i: int) -> str:
        """Return the name of a turn for messages, with its number in the record."""
        number = self.numbers[i] if self.numbers else i + 1 - self.first_turn
        return f"turn {number}" if number > 0 else "the system prompt"


@dataclass(frozen=True, slots=True)
class _Turn:
    """A turn with all that belongs to it."""

    message: Message
    trained: bool
    number: int
    ranges: Sequence[Range] = ()

    def with_content(self, content: str, *, offset: int = 0, **keys: Any) -> _Turn:
        """Return the turn with another content, which holds the old one from `offset`, and other keys."""
        moved = tuple((max(start + offset, 0), stop + offset, flag) for start, stop, flag in self.ranges)
        return replace(self, message={**self.message, "content": content, **keys}, ranges=moved)


def apply_fallbacks(conversation: Conversation, template: ChatTemplate) -> AdaptedConversation:
    """Apply the template fallbacks to a conversation. It stays unchanged if the template renders everything."""
    messages = conversation.messages
    if conversation.tools is None and all(_is_plain(m, template) for m in messages):
        kwargs, ranges = conversation.template_kwargs, conversation.ranges
        return AdaptedConversation(messages, None, conversation.trained, conversation.first_turn, (), kwargs, ranges)
    turns = [
        _Turn(message, flag, i + 1 - conversation.first_turn, conversation.ranges.get(i, ()))
        for i, (message, flag) in enumerate(zip(messages, conversation.trained, strict=True))
    ]
    turns, tools = _adapted(turns, conversation.tools, template)
    return AdaptedConversation(
        tuple(turn.message for turn in turns),
        tools,
        tuple(turn.trained for turn in turns),
        numbers=tuple(turn.number for turn in turns),
        variables=conversation.template_kwargs,
        ranges={i: turn.ranges for i, turn in enumerate(turns) if turn.ranges},
    )


def _adapted(
    turns: list[_Turn], tools: list[dict[str, Any]] | None, template: ChatTemplate
) -> tuple[list[_Turn], list[dict[str, Any]] | None]:
    if not template.knows_developer:
        turns = [_with_role(t, "system") if t.message["role"] == "developer" else t for t in turns]
    if template.form.reasoning is None:
        turns = [_with_inline_reasoning(turn) for turn in turns]
    elif template.form.moves_inline:
        turns = [_with_moved_reasoning(turn, template) for turn in turns]
    if tools and not template.knows_tools:
        turns, tools = _with_tools_in_system(turns, tools), None
    if not template.knows_calls:
        turns = [_with_calls_as_text(turn) for turn in turns]
    elif template.requires_call_ids:
        turns = _with_call_ids(turns, nine_characters=template.form.nine_character_ids)
    if not template.knows_tool_role:
        turns = _with_results_as_user(turns)
    if not template.knows_system:
        turns = _with_system_in_user(turns)
    return turns, tools


def _is_plain(message: Message, template: ChatTemplate) -> bool:
    """Whether no rule changes the turn: role and content, and a role that every template knows or this one does."""
    role = message["role"]
    is_known = role in ("user", "assistant") or (role == "system" and template.knows_system)
    if not is_known or len(message) != 2:
        return False
    return not (template.form.moves_inline and role == "assistant" and "</think>" in message["content"])


def describe_fallbacks(template: ChatTemplate) -> list[str]:
    """Return the fallbacks and forms of this template, for the manifest."""
    form = template.form
    notes = {
        "tools in the system prompt": template.knows_tools,
        "tool calls as JSON text": template.knows_calls,
        "tool results as user turns": template.knows_tool_role,
        "system prompt in the first user turn": template.knows_system,
        "reasoning inline as <think>": form.reasoning is not None,
        "inline reasoning moved": not form.moves_inline,
        "content as parts": not form.parts,
        "arguments of calls as JSON text": not form.arguments_as_text,
        "call ids of nine characters": not form.nine_character_ids,
    }
    return [note for note, is_known in notes.items() if not is_known]


def _with_role(turn: _Turn, role: str) -> _Turn:
    return replace(turn, message={**turn.message, "role": role})


def _with_inline_reasoning(turn: _Turn) -> _Turn:
    thought = turn.message.get("reasoning_content")
    if not thought:
        return turn
    before = f"<think>\n{thought.strip()}\n</think>\n\n"
    inline = turn.with_content(before + turn.message["content"], offset=len(before))
    return replace(inline, message={k: v for k, v in inline.message.items() if k != "reasoning_content"})


def _with_moved_reasoning(turn: _Turn, template: ChatTemplate) -> _Turn:
    moved = template.form.with_moved_reasoning(turn.message)
    if moved is turn.message:
        return turn
    cut = len(turn.message["content"]) - len(moved["content"])
    if any(start < cut and not flag for start, _, flag in turn.ranges):
        what = f"turn {turn.number} leaves out a part of its reasoning by training ranges"
        raise RecordError("mask_not_verified", f"{what}, and the chat template writes reasoning elsewhere")
    return replace(turn.with_content(moved["content"], offset=-cut), message=moved)


def _with_tools_in_system(turns: list[_Turn], tools: Sequence[dict[str, Any]]) -> list[_Turn]:
    listing = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    text = f"You may call these tools:\n{listing}"
    if turns[0].message["role"] == "system":
        return [turns[0].with_content(f"{turns[0].message['content']}\n\n{text}"), *turns[1:]]
    return [_Turn({"role": "system", "content": text}, trained=False, number=0), *turns]


def _with_calls_as_text(turn: _Turn) -> _Turn:
    message = turn.message
    if not message.get("tool_calls"):
        return turn
    calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message["tool_calls"]]
    text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    content = f"{message['content']}\n{text}" if message["content"] else text
    return replace(turn, message={k: v for k, v in message.items() if k != "tool_calls"} | {"content": content})


def _with_call_ids(turns: Sequence[_Turn], *, nine_characters: bool) -> list[_Turn]:
    """Assign ids to calls without one, and to results the ids of their calls in order.

    nine_characters: also replace ids of another form, in calls and results alike.
    """
    taken = {str(call["id"]) for t in turns for call in t.message.get("tool_calls", ()) if "id" in call}
    fresh = (name for count in range(1, 100_000) if (name := f"call{count:05d}") not in taken)
    ids: dict[str, str] = {}
    pending: list[str] = []
    out: list[_Turn] = []
    for turn in turns:
        message = turn.message
        if message.get("tool_calls"):
            calls = [_with_call_id(call, ids, fresh, nine_characters=nine_characters) for call in message["tool_calls"]]
            pending = [call["id"] for call in calls]
            out.append(replace(turn, message={**message, "tool_calls": calls}))
        elif message["role"] == "tool":
            own = message.get("tool_call_id")
            known = ids.get(str(own)) if own is not None else None
            if known is None and (own is None or (nine_characters and not _has_nine(own))):
                known = pending[0] if pending else own
            if (answered := own if known is None else known) in pending:
                pending.remove(answered)
            out.append(turn if answered is None else replace(turn, message={**message, "tool_call_id": answered}))
        else:
            out.append(turn)
    return out


def _with_call_id(
    call: Mapping[str, Any], ids: dict[str, str], fresh: Iterable[str], *, nine_characters: bool
) -> dict[str, Any]:
    """Return a call with an id. ids: ids of the record to new ones, of the calls up to this one."""
    own = call.get("id")
    if own is not None and (not nine_characters or _has_nine(own)):
        ids[str(own)] = own
        return dict(call)
    new = next(iter(fresh))
    if own is not None:
        ids[str(own)] = new
    return {**call, "id": new}


def _has_nine(call_id: Any) -> bool:
    return isinstance(call_id, str) and len(call_id) == 9 and call_id.isalnum()


def _with_results_as_user(turns: list[_Turn]) -> list[_Turn]:
    out: list[_Turn] = []
    was_tool = False
    for turn in turns:
        is_tool = turn.message["role"] == "tool"
        if is_tool and was_tool:
            out[-1] = out[-1].with_content(f"{out[-1].message['content']}\n{turn.message['content']}")
        else:
            out.append(replace(turn, message={"role": "user", "content": turn.message["content"]}) if is_tool else turn)
        was_tool = is_tool
    return out


def _with_system_in_user(turns: list[_Turn]) -> list[_Turn]:
    system = "\n\n".join(t.message["content"] for t in turns if t.message["role"] == "system")
    kept = [t for t in turns if t.message["role"] != "system"]
    first = next((i for i, t in enumerate(kept) if t.message["role"] == "user"), None)
    if not system:
        return kept
    if first is None:
        raise RecordError("context_dropped", "the chat template has no system role, and no user turn can carry it")
    kept[first] = kept[first].with_content(f"{system}\n\n{kept[first].message['content']}")
    return kept
