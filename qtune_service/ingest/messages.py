"""Convert the turns of datasets to messages in the form of chat templates.

Roles of several dialects map to system, developer, user, assistant and tool. A call of a function may be an
OpenAI `tool_calls` list, the older `function_call`, or a separate turn with JSON text (sharegpt). It always becomes
`tool_calls` with `arguments` as an object, because templates print `arguments | tojson`. Null keys are dropped:
Parquet fills absent fields of a struct with null, and templates test `is defined`.

Per-turn training flags `loss`, `train`, `weight` and `step_loss_mask` are 0/1 or booleans; an assistant turn is
trained if none of them is 0. A mask cannot represent a weight between 0 and 1, so such a weight is an error. Flags on
other turns are ignored, because only assistant turns are trained.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qtune_service.ingest.records import Conversation, Message, RecordError

FLAGS = ("loss", "train", "weight", "step_loss_mask")

ROLES = {
    "system": "system",
    "developer": "developer",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "tool_response": "tool",
    "function_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
}
_PLAIN_ROLES = ("system", "user", "assistant")
CALL_ROLES = frozenset({"function_call", "tool_call"})
_HANDLED = frozenset({"role", "content", "from", "value", "tool_calls", "function_call", *FLAGS})


def parse_turns(turns: Any, where: str) -> tuple[list[Message], list[bool]]:
    """Parse turns into messages and training flags. where: column name for errors. Raises RecordError."""
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise RecordError("bad_type", f"{where} must be a list of turns, got {type(turns).__name__}")
    messages, trained = [], []
    for number, turn in enumerate(turns):
        if _is_plain(turn):
            message, is_trained = {"role": turn["role"], "content": turn["content"]}, turn["role"] == "assistant"
        else:
            message, is_trained = parse_turn(turn, f"{where}[{number}]")
        messages.append(message)
        trained.append(is_trained)
    return messages, trained


def _is_plain(turn: Any) -> bool:
    """Return whether a turn already is a plain message: no dialect, flag or call, as most turns."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return False
    role, content = turn.get("role"), turn.get("content")
    return isinstance(role, str) and role in _PLAIN_ROLES and isinstance(content, str)


def parse_turn(turn: Any, where: str) -> tuple[Message, bool]:
    """Parse one turn with keys role/content or from/value. Raises RecordError."""
    if not isinstance(turn, Mapping):
        raise RecordError("bad_type", f"{where} must be an object, got {type(turn).__name__}")
    dialect = _role(turn, where)
    role = ROLES[dialect]
    is_trained = _flag(turn, where) if role == "assistant" else False
    value = turn.get("content") if "role" in turn else turn.get("value")
    message: Message = {"role": role}
    if dialect in CALL_ROLES:
        message |= {"content": "", "tool_calls": parse_calls(value, where)}
        return message, is_trained
    message["content"] = flatten_content(value, where, may_be_null=_has_other_material(turn))
    message |= {k: v for k, v in turn.items() if k not in _HANDLED and v is not None}
    calls = turn.get("tool_calls") or turn.get("function_call")
    if calls:
        if role != "assistant":
            raise RecordError("bad_tool_call", f"{where} calls a tool, but its role is {role}")
        message["tool_calls"] = parse_calls(calls, where)
    return message, is_trained


def _has_other_material(turn: Mapping[str, Any]) -> bool:
    return any(turn.get(key) for key in ("tool_calls", "function_call", "reasoning_content"))


def _role(turn: Mapping[str, Any], where: str) -> str:
    dialect = turn.get("role", turn.get("from"))
    if dialect is None:
        raise RecordError("missing_field", f"{where} has neither role nor from")
    if not isinstance(dialect, str) or dialect not in ROLES:
        raise RecordError("bad_role", f"{where} has role {dialect!r}; known are {', '.join(ROLES)}")
    return dialect


def _flag(turn: Mapping[str, Any], where: str) -> bool:
    trained = True
    for name in FLAGS:
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise RecordError("bad_flag", f"{where}.{name} must be true, false, 0 or 1, got {value!r}")
        trained = trained and bool(value)
    return trained


def flatten_content(value: Any, where: str, *, may_be_null: bool = False) -> str:
    """Return the text of a turn: a string, or the joined `{"type": "text", "text": ...}` parts."""
    if isinstance(value, str):
        return value
    if value is None:
        if may_be_null:
            return ""
        raise RecordError("missing_field", f"{where} has no content")
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise RecordError("bad_type", f"{where} content must be text, got {type(value).__name__}")
    parts = []
    for part in value:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            raise RecordError("bad_type", f"{where} content has a part that is not text; only text can be scored")
        parts.append(part["text"])
    return "".join(parts)


def parse_calls(value: Any, where: str) -> list[dict[str, Any]]:
    """Parse calls into the OpenAI form, from that form, bare name/arguments objects, or JSON text of either."""
    if isinstance(value, str):
        value = _json(value, "bad_tool_call", f"{where}: a call must be JSON with name and arguments")
    calls = [value] if isinstance(value, Mapping) else value
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes) or not calls:
        raise RecordError("bad_tool_call", f"{where}: a call must be an object or a list of them")
    return [_parse_call(call, where) for call in calls]


def _parse_call(call: Any, where: str) -> dict[str, Any]:
    if not isinstance(call, Mapping):
        raise RecordError("bad_tool_call", f"{where}: a call must be an object, got {type(call).__name__}")
    function = call["function"] if isinstance(call.get("function"), Mapping) else call
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str) or not name:
        raise RecordError("bad_tool_call", f"{where}: a call has no name")
    if isinstance(arguments, str):
        arguments = _json(arguments, "bad_tool_call", f"{where}: arguments of {name} are not JSON") if arguments else {}
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise RecordError("bad_tool_call", f"{where}: arguments of {name} must be an object")
    parsed: dict[str, Any] = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    return {"id": call["id"], **parsed} if call.get("id") is not None else parsed


def parse_tools(value: Any, where: str) -> list[dict[str, Any]] | None:
    """Parse tool descriptions into `{"type": "function", "function": {...}}`; None without tools."""
    if isinstance(value, str):
        value = _json(value, "bad_tools", f"{where} is not JSON") if value.strip() else None
    if not value:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RecordError("bad_tools", f"{where} must be a list, or JSON text of one")
    tools = []
    for tool in value:
        bare = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(bare, Mapping) or not isinstance(bare.get("name"), str):
            raise RecordError("bad_tools", f"{where} has an entry without a name")
        tools.append(dict(tool) if "function" in tool else {"type": "function", "function": dict(tool)})
    return tools


def finish(messages: Sequence[Message], trained: Sequence[bool], tools: list[dict[str, Any]] | None) -> Conversation:
    """Build a conversation. Raises RecordError without a trained assistant turn, or if one is empty."""
    if not any(m["role"] == "assistant" for m in messages):
        raise RecordError("no_assistant_turn", f"none of the {len(messages)} turns is an assistant's")
    if not any(trained):
        raise RecordError("no_trained_turn", "the training flags leave out every assistant turn")
    for number, (message, is_trained) in enumerate(zip(messages, trained, strict=True)):
        material = (message["content"].strip(), message.get("tool_calls"), message.get("reasoning_content"))
        if is_trained and not any(material):
            raise RecordError("empty_response", f"turn {number}, an assistant's, is empty")
    return Conversation(tuple(messages), tools, tuple(trained))


def _json(text: str, reason_code: str, problem: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise RecordError(reason_code, f"{problem} ({error})") from error
