"""Check that a rendered text contains the whole conversation, and count what a template does not show.

A template may drop the reasoning of answers before the last user turn, as reasoning models do, but not after it. Every
other turn, call and tool must be in the text, or the record is rejected. Dropped reasoning, and variables of a record
(`documents` and `chat_template_kwargs`) that the template does not show, are notes, which a job counts in a warning.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from qtune_service.ingest.fields import SHOWN_KEYS
from qtune_service.ingest.records import Message, RecordError
from qtune_service.tokenize.chat_template import RESERVED, ChatTemplate
from qtune_service.tokenize.fallbacks import AdaptedConversation

_DOCUMENT_TEXTS = ("text", "content", "contents", "passage", "page_content", "body", "snippet", "snippets")
"""Keys of a document's text, in the forms of vendors."""


DROPPED_REASONING = "the chat template drops the reasoning before the last question"


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
