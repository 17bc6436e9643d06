r"""Keep the whole context of a conversation in the rendered text: fallbacks before the rendering, checks after it.

A template without tools or system role omits them silently. The fallbacks move content that a template cannot render
to a place where it can, in this order and form:
  developer turn   becomes a system turn
  reasoning        `<think>\nREASONING\n</think>\n\nCONTENT`, the form in which reasoning models write it
  tools            JSON, one a line, after the system prompt
  tool_calls       JSON text `{"name": ..., "arguments": {...}}` after the content; several calls as a list
  tool results     user turns; several in a row are joined by newlines
  system turn      before the first user turn, two newlines between
Inline reasoning moves to the template's own place where message_form.py says so, and calls get ids where the template
reads them. Turns keep the numbers that they have in the record, and training ranges follow the content.

Then every turn, call and tool must be in the text, or the record is rejected. A template may drop the reasoning of
answers before the last user turn, as reasoning models do, but not after it. Dropped reasoning, variables of a record
(`documents` and `chat_template_kwargs`) and keys of turns that the template does not show are notes, which a job counts
in a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from qtune_service.ingest.fields import SHOWN_KEYS
from qtune_service.ingest.records import Conversation, Message, Range, RecordError
from qtune_service.tokenize.chat_template import RESERVED, ChatTemplate

_DOCUMENT_TEXTS = ("text", "content", "contents", "passage", "page_content", "body", "snippet", "snippets")
"""Keys of a document's text, in the forms of vendors."""


DROPPED_REASONING = "the chat template drops the reasoning before the last question"


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
        own = turns[0].message["content"]
        return [turns[0].with_content(f"{own}\n\n{text}" if own.strip() else text), *turns[1:]]
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


# --- checks of the rendered text


def check_context(conversation: AdaptedConversation, template: ChatTemplate, text: str) -> tuple[str, ...]:
    """Return notes on reasoning that is not shown. Raise RecordError if another part is missing in `text`."""
    messages, position = conversation.messages, 0
    notes: tuple[str, ...] = ()
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    for i, message in enumerate(messages):
        thought, content = split_reasoning(message)
        if thought and _find(thought, text, 0) is None:
            if i > last_user:
                what = f"the chat template drops the reasoning of {conversation.name_of(i)}"
                raise RecordError("context_dropped", what)
            notes = (DROPPED_REASONING,)
        # Some templates put the system prompt into the last user turn, so its position is not checked.
        start = 0 if message["role"] == "system" else position
        end = _find(content, text, start)
        if end is None:
            verb = "drops or rewrites" if _find(content, text, 0) is None else "changes the order of turns at"
            what = f"{conversation.name_of(i)} ({message['role']})"
            raise RecordError("context_dropped", f"the chat template {verb} {what}")
        if calls := message.get("tool_calls"):
            _check_calls(calls, template, text, conversation.name_of(i))
            behind = _find(thought, text, position) if thought else None
            if behind is not None and _find(calls[0]["function"]["name"], text, behind) is None:
                what = f"the chat template writes the reasoning of {conversation.name_of(i)} behind its call"
                raise RecordError("context_dropped", what)
        position = position if message["role"] == "system" else end
    for tool in conversation.tools or ():
        name = tool.get("function", tool).get("name", "")
        if name not in text:
            raise RecordError("context_dropped", f"the chat template drops the tool {name!r}")
    return notes


def split_reasoning(message: Message) -> tuple[str, str]:
    """Return reasoning and content of a turn, stripped."""
    content = message["content"]
    thought = message.get("reasoning_content") or ""
    if message["role"] == "assistant" and "</think>" in content:
        before, _, content = content.rpartition("</think>")
        thought = before.rpartition("<think>")[2] or thought
    return thought.strip(), content.strip()


def notes_of(conversation: AdaptedConversation, template: ChatTemplate, text: str) -> tuple[str, ...]:
    """Return a clause for each variable of the record that the template does not show."""
    unseen = [
        name
        for name, value in conversation.variables.items()
        if (name not in template.variables | RESERVED or (name == "documents" and not _shows_documents(value, text)))
    ]
    return tuple(f"the chat template does not show `{name}`" for name in unseen)


def unseen_keys(messages: Sequence[Message], template: ChatTemplate, text: str) -> tuple[str, ...]:
    """Return a clause for each known key of turns that the template does not show."""
    given = ((key, turn[key]) for turn in messages if len(turn) > 2 for key in SHOWN_KEYS & turn.keys())
    unseen = {key for key, value in given if value and not _is_shown(key, value, template, text)}
    return tuple(f"the chat template does not show `{key}` of turns" for key in sorted(unseen))


def _is_shown(key: str, value: Any, template: ChatTemplate, text: str) -> bool:
    if isinstance(value, str):
        return _find(value.strip(), text, 0) is not None
    return key in template.source


def _check_calls(calls: list[dict[str, Any]], template: ChatTemplate, text: str, turn: str) -> None:
    if len(calls) > 1 and not template.form.parallel_calls:
        raise RecordError("context_dropped", f"the chat template shows one call a turn; {turn} makes {len(calls)}")
    for call in calls:
        function = call["function"]
        words = [function["name"], *function["arguments"]]
        words += [value for value in function["arguments"].values() if isinstance(value, str)]
        for word in words:
            if _find(word.strip(), text, 0) is None:
                raise RecordError("context_dropped", f"the chat template drops {word!r} of the tool call in {turn}")


def _shows_documents(documents: Any, text: str) -> bool:
    """Return whether the text of every document is shown."""
    return all(
        _find(words.strip(), text, 0) is not None for document in documents or () for words in _texts_of(document)
    )


def _texts_of(document: Any) -> list[str]:
    """Return the texts of a document: by their known keys, or the longest text."""
    if not isinstance(document, Mapping):
        return [document] if isinstance(document, str) else []
    known = [document[key] for key in _DOCUMENT_TEXTS if isinstance(document.get(key), str)]
    return known or sorted((v for v in document.values() if isinstance(v, str)), key=len)[-1:]


def _find(needle: str, text: str, start: int) -> int | None:
    """Return the end of the first occurrence of `needle`, plain or JSON-escaped."""
    for form in _forms(needle):
        found = text.find(form, start)
        if found >= 0:
            return found + len(form)
    return None


def _forms(needle: str) -> Iterator[str]:
    yield needle
    yield json.dumps(needle, ensure_ascii=False)[1:-1]
    yield json.dumps(needle)[1:-1]
