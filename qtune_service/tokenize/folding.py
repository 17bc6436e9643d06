r"""Conversation -> the messages that one template can show, with nothing of the context lost.

Templates differ in what they know, and one that knows no `tools` or no system role leaves it out without a word.
What a template cannot show is written where it can be shown, in this order and in this form:
  developer turn   becomes a system turn
  reasoning        `<think>\nREASONING\n</think>\n\nCONTENT`, the form in which reasoning models write it
  tools            JSON, one a line, after the system prompt
  tool_calls       JSON text `{"name": ..., "arguments": {...}}` after the content; several calls as a list
  tool results     user turns; several in a row are joined by newlines
  system turn      before the first user turn, two newlines between
Afterwards `check_context` looks for every turn in the rendered text, and refuses the record if one is missing.
A template may drop the reasoning of answers before the last user turn, as reasoning models do; not after it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

from qtune_service.ingest.records import Conversation, Message, RecordError
from qtune_service.tokenize.chat_template import ChatTemplate


def fold(conversation: Conversation, template: ChatTemplate) -> Conversation:
    """The conversation for `template`; unchanged where the template knows everything in it."""
    if conversation.tools is None and all(_is_plain(m, template) for m in conversation.messages):
        return conversation
    messages, trained, tools = list(conversation.messages), list(conversation.trained), conversation.tools
    if not template.knows_developer:
        messages = [{**m, "role": "system"} if m["role"] == "developer" else m for m in messages]
    if not template.knows_reasoning:
        messages = [_with_inline_reasoning(m) for m in messages]
    if tools and not template.knows_tools:
        messages, trained, tools = *_with_tools_in_system(messages, trained, tools), None
    if not template.knows_calls:
        messages = [_with_calls_as_text(m) for m in messages]
    elif template.wants_call_ids:
        messages = _with_call_ids(messages)
    if not template.knows_tool_role:
        messages, trained = _with_results_as_user(messages, trained)
    if not template.knows_system:
        messages, trained = _with_system_in_user(messages, trained)
    return Conversation(tuple(messages), tools, tuple(trained))


def _is_plain(message: Message, template: ChatTemplate) -> bool:
    """Whether no rule changes the turn: role and content, and a role that every template knows or this one does."""
    role = message["role"]
    is_known = role in ("user", "assistant") or (role == "system" and template.knows_system)
    return is_known and len(message) == 2


def describe_folding(template: ChatTemplate) -> list[str]:
    """What this template cannot show, for the manifest."""
    notes = {
        "tools in the system prompt": template.knows_tools,
        "tool calls as JSON text": template.knows_calls,
        "tool results as user turns": template.knows_tool_role,
        "system prompt in the first user turn": template.knows_system,
        "reasoning inline as <think>": template.knows_reasoning,
    }
    return [note for note, is_known in notes.items() if not is_known]


def check_context(conversation: Conversation, text: str) -> None:
    """Raise RecordError if something of the conversation did not reach `text`."""
    messages, position = conversation.messages, 0
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for number, message in enumerate(messages):
        thought, content = split_reasoning(message)
        if number > last_user and thought and _find(thought, text, 0) is None:
            raise RecordError("context_dropped", f"the chat template drops the reasoning of turn {number}")
        # Some templates write the system prompt in the last user turn, so its place says nothing.
        start = 0 if message["role"] == "system" else position
        end = _find(content, text, start)
        if end is None:
            what = f"turn {number} ({message['role']})"
            raise RecordError("context_dropped", f"the chat template drops or rewrites {what}")
        position = position if message["role"] == "system" else end
        for call in message.get("tool_calls", ()):
            _check_call(call["function"], text, number)
    for tool in conversation.tools or ():
        name = tool.get("function", tool).get("name", "")
        if name not in text:
            raise RecordError("context_dropped", f"the chat template drops the tool {name!r}")


def split_reasoning(message: Message) -> tuple[str, str]:
    """Reasoning and content of a turn, without the white space around them."""
    content = message["content"]
    thought = message.get("reasoning_content") or ""
    if message["role"] == "assistant" and "</think>" in content:
        before, _, content = content.rpartition("</think>")
        thought = before.rpartition("<think>")[2] or thought
    return thought.strip(), content.strip()


def _check_call(function: dict[str, Any], text: str, number: int) -> None:
    words = [function["name"], *function["arguments"]]
    words += [value for value in function["arguments"].values() if isinstance(value, str)]
    for word in words:
        if _find(word.strip(), text, 0) is None:
            raise RecordError("context_dropped", f"the chat template drops {word!r} of the tool call in turn {number}")


def _find(needle: str, text: str, start: int) -> int | None:
    """End of the first occurrence of `needle`, as it is or as JSON escapes it."""
    for form in _forms(needle):
        found = text.find(form, start)
        if found >= 0:
            return found + len(form)
    return None


def _forms(needle: str) -> Iterator[str]:
    yield needle
    yield json.dumps(needle, ensure_ascii=False)[1:-1]
    yield json.dumps(needle)[1:-1]


def _with_inline_reasoning(message: Message) -> Message:
    if not message.get("reasoning_content"):
        return message
    rest = {k: v for k, v in message.items() if k != "reasoning_content"}
    return {**rest, "content": f"<think>\n{message['reasoning_content'].strip()}\n</think>\n\n{message['content']}"}


def _with_tools_in_system(
    messages: list[Message], trained: list[bool], tools: Sequence[dict[str, Any]]
) -> tuple[list[Message], list[bool]]:
    listing = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    text = f"You may call these tools:\n{listing}"
    if messages[0]["role"] == "system":
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]], trained
    return [{"role": "system", "content": text}, *messages], [False, *trained]


def _with_calls_as_text(message: Message) -> Message:
    if not message.get("tool_calls"):
        return message
    calls = [{key: call["function"][key] for key in ("name", "arguments")} for call in message["tool_calls"]]
    text = json.dumps(calls[0] if len(calls) == 1 else calls, ensure_ascii=False)
    rest = {k: v for k, v in message.items() if k != "tool_calls"}
    return {**rest, "content": f"{message['content']}\n{text}" if message["content"] else text}


def _with_call_ids(messages: Sequence[Message]) -> list[Message]:
    """Number the calls that have no id, and give each result the id of the call it answers, in order."""
    out: list[Message] = []
    pending: list[str] = []
    count = 0
    for message in messages:
        if message.get("tool_calls"):
            calls = []
            for call in message["tool_calls"]:
                count += 1
                calls.append({"id": f"call{count:05d}", **call})  # nine characters: Mistral's templates insist
            pending = [call["id"] for call in calls]
            out.append({**message, "tool_calls": calls})
        elif message["role"] == "tool" and "tool_call_id" not in message and pending:
            out.append({**message, "tool_call_id": pending.pop(0)})
        else:
            out.append(message)
    return out


def _with_results_as_user(messages: list[Message], trained: list[bool]) -> tuple[list[Message], list[bool]]:
    out: list[Message] = []
    flags: list[bool] = []
    was_tool = False
    for message, flag in zip(messages, trained, strict=True):
        is_tool = message["role"] == "tool"
        if is_tool and was_tool:
            out[-1] = {**out[-1], "content": f"{out[-1]['content']}\n{message['content']}"}
        else:
            out.append({"role": "user", "content": message["content"]} if is_tool else message)
            flags.append(flag)
        was_tool = is_tool
    return out, flags


def _with_system_in_user(messages: list[Message], trained: list[bool]) -> tuple[list[Message], list[bool]]:
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    kept = [(m, flag) for m, flag in zip(messages, trained, strict=True) if m["role"] != "system"]
    first = next((i for i, (m, _) in enumerate(kept) if m["role"] == "user"), None)
    if not system:
        return [m for m, _ in kept], [flag for _, flag in kept]
    if first is None:
        raise RecordError("context_dropped", "the chat template has no system role, and no user turn can carry it")
    user, flag = kept[first]
    kept[first] = ({**user, "content": f"{system}\n\n{user['content']}"}, flag)
    return [m for m, _ in kept], [flag for _, flag in kept]
