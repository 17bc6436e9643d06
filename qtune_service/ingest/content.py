"""Convert the content of a turn, a text or a list of parts, to text, reasoning and tool calls.

Parts of several dialects are known: OpenAI (`text`, `input_text`, `output_text`, `refusal`), LLaMA-Factory v1 (`value`
in place of `text`, `reasoning`, `tool_call`), Anthropic (`thinking`, `tool_use`, `tool_result`) and Bedrock (a text
without a type). Parts with null keys, as Arrow pads them, count by what they hold. Media and unknown parts are errors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtune_service.ingest.records import RecordError
from qtune_service.ingest.tools import parse_calls

_TEXT_TYPES = frozenset({"text", "input_text", "output_text", "refusal"})
_REASONING_TYPES = frozenset(
    {"reasoning", "thinking", "reasoning_content", "reasoning_text", "reasoning.text", "reasoning.summary"}
)
_CALL_TYPES = frozenset({"tool_call", "tool_use", "function_call", "tool_calls"})
_RESULT_TYPES = frozenset({"tool_result", "tool_response", "function_call_output"})
_TEXT_KEYS = ("text", "value", "content", "refusal")
_REASONING_KEYS = (
    "text",
    "value",
    "thinking",
    "reasoning",
    "reasoning_content",
    "reasoning_text",
    "content",
    "summary",
)


@dataclass(slots=True)
class Content:
    """The material of a turn's content."""

    text: str = ""
    reasoning: str = ""
    calls: list[dict[str, Any]] = field(default_factory=list)
    result_of: str | None = None
    """Id of the call that a tool result answers; None for other content, "" without an id."""


def parse_content(value: Any, where: str) -> Content:
    """Parse the content of a turn. Raises RecordError."""
    if isinstance(value, str):
        return Content(value)
    if isinstance(value, Mapping) and _type_of(value):
        value = [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RecordError("bad_type", f"{where}: the content must be text, got {type(value).__name__}")
    found = Content()
    texts, thoughts = [], []
    for part in value:
        kind = "text" if isinstance(part, str) else _type_of(part)
        if kind in _TEXT_TYPES:
            texts.append(part if isinstance(part, str) else _text(part, _TEXT_KEYS, where))
        elif kind in _REASONING_TYPES:
            thoughts.append(_text(part, _REASONING_KEYS, where))
        elif kind in _CALL_TYPES:
            found.calls += parse_calls(_call(part), where)
        elif kind in _RESULT_TYPES:
            if len(value) > 1:
                raise RecordError(
                    "bad_type", f"{where} has several parts with a tool result; give each a turn of its own (role tool)"
                )
            texts.append(_result(part, where))
            found.result_of = str(next((part[k] for k in ("tool_use_id", "call_id") if part.get(k)), ""))
        else:
            raise RecordError(
                "not_text", f"{where} has a part of type {str(kind)[:80]!r} that is not text; only text can be scored"
            )
    found.text, found.reasoning = "".join(texts), "\n".join(thoughts)
    return found


def is_filled(value: Any) -> bool:
    """Return whether a value holds anything: `[]`, `[None]` and `{"bytes": None, "path": None}` hold nothing."""
    if isinstance(value, Mapping):
        return any(map(is_filled, value.values()))
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return any(map(is_filled, value))
    return value is not None and value not in ("", b"")


def flatten_content(value: Any, where: str) -> str:
    """Return a text, or the joined text parts. Raises RecordError."""
    if value is None:
        raise RecordError("missing_field", f"{where} has no content")
    found = parse_content(value, where)
    if found.calls or found.reasoning or found.result_of is not None:
        raise RecordError("bad_type", f"{where}: only text can stand here")
    return found.text


def _type_of(part: Any) -> str | None:
    """Return the type of a part; `text` for a part that only holds text."""
    if not isinstance(part, Mapping):
        return f"{type(part).__name__}"
    if part.get("type") is not None:
        return str(part["type"])
    filled = [key for key, value in part.items() if value is not None]
    if filled and filled[0] in ("text", "value") and len(filled) == 1 and isinstance(part[filled[0]], str):
        return "text"
    return ", ".join(filled) or None


def _text(part: Mapping[str, Any], keys: Sequence[str], where: str) -> str:
    value = next((part[key] for key in keys if part.get(key) is not None), None)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):  # summaries of reasoning
        return "\n".join(_text(item, keys, where) if isinstance(item, Mapping) else str(item) for item in value)
    if not isinstance(value, str):
        raise RecordError("bad_type", f"{where} has a part of type {part.get('type')!r} without text")
    return value


def _call(part: Mapping[str, Any]) -> Any:
    """Return the call in a part: in a key of its own, or the part itself."""
    held = next((part[key] for key in ("value", "tool_call", "tool_calls", "function_call") if part.get(key)), None)
    return part if held is None else held


def _result(part: Mapping[str, Any], where: str) -> str:
    value = next((part[key] for key in ("content", "output", "value", "text") if part.get(key) is not None), "")
    return flatten_content(value, where)
