"""Convert the turns of datasets to messages in the form of chat templates.

Roles of several dialects map to system, developer, user, assistant and tool, in any case, and the job may name others.
A call of a function may be an OpenAI `tool_calls` list, the older `function_call`, a part, or a separate turn with JSON
text (sharegpt). It always becomes `tool_calls`. Reasoning has three names and may be a part; it always becomes
`reasoning_content`. Null keys are dropped: Arrow fills absent fields of a struct with null, and templates test `is
defined`.

Only assistant turns are trained. A flag that asks for another turn to be trained is counted in a note. Tools in the
system turn are returned for the whole conversation. Other keys are passed to the template.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qtune_service.ingest import training_flags
from qtune_service.ingest.content import Content, is_filled, parse_content
from qtune_service.ingest.fields import CONTENT_KEYS, MEDIA, REASONING, ROLE_KEYS
from qtune_service.ingest.records import NO_NAMES, ColumnNames, Conversation, Message, Range, RecordError
from qtune_service.ingest.tools import parse_calls, parse_json, parse_tools

_SYNONYMS = {
    "system": ("system",),
    "developer": ("developer",),
    "user": ("user", "human", "prompter"),
    "assistant": (
        *("assistant", "gpt", "bot", "chatbot", "chatgpt", "model", "ai", "bing", "bard"),
        *("function_call", "tool_call"),
    ),
    "tool": (
        *("tool", "function", "observation", "ipython", "tool_response", "function_response", "tool_result"),
        "function_result",
    ),
}
ROLES = {name: role for role, names in _SYNONYMS.items() for name in names}
EXCHANGE_KEYS = {
    **{name: ROLES[name] for name in ("system", "user", "human", "assistant", "gpt", "bot", "chatbot", "model")},
    "input": "user",
    "output": "assistant",
}
"""Keys of objects that hold the texts of several turns, in their order, and the roles of these."""
CALL_ROLES = frozenset({"function_call", "tool_call"})
_PLAIN_ROLES = ("system", "user", "assistant")
_CALLS = ("tool_calls", "function_call")
NO_VARIABLES: Mapping[str, Any] = {}
_HANDLED = frozenset({*ROLE_KEYS, *CONTENT_KEYS, *_CALLS, *REASONING, *MEDIA, "tools", "refusal", *training_flags.ALL})


@dataclass(slots=True)
class Turns:
    """Parsed turns. `messages` and `trained` have one entry a turn."""

    messages: list[Message] = field(default_factory=list)
    trained: list[bool] = field(default_factory=list)
    ranges: dict[int, tuple[Range, ...]] = field(default_factory=dict)
    tools: list[dict[str, Any]] | None = None
    notes: list[str] = field(default_factory=list)
    first: int = 0
    """Index of the record's own first turn. A system prompt from a column comes before it."""

    def insert_system(self, content: str) -> None:
        """Put a system turn before the turns of the record."""
        self.messages.insert(0, {"role": "system", "content": content})
        self.trained.insert(0, False)
        self.ranges = {i + 1: ranges for i, ranges in self.ranges.items()}
        self.first += 1

    def extend(self, other: Turns) -> None:
        """Append the turns of another list."""
        at = len(self.messages)
        self.messages += other.messages
        self.trained += other.trained
        self.ranges |= {at + i: ranges for i, ranges in other.ranges.items()}
        self.notes += other.notes
        self.add_tools(other.tools)

    def add_tools(self, tools: list[dict[str, Any]] | None) -> None:
        """Add tools that are not there yet."""
        if tools:
            self.tools = [*(self.tools or ()), *(tool for tool in tools if tool not in (self.tools or ()))]


def parse_turns(turns: Any, where: str, names: ColumnNames = NO_NAMES) -> Turns:
    """Parse a list of turns, or JSON text of one. where: column name for errors. Raises RecordError."""
    if isinstance(turns, str):
        turns = parse_json(turns, "bad_type", f"{where} is text that is not JSON")
    if not isinstance(turns, Sequence) or isinstance(turns, str | bytes):
        raise RecordError("bad_type", f"{where} must be a list of turns, got {type(turns).__name__}")
    parsed = Turns()
    messages, trained = parsed.messages, parsed.trained
    for turn in turns:
        if _is_plain(turn):
            role = turn["role"]
            messages.append({"role": role, "content": turn["content"]})
            trained.append(role == "assistant")
            continue
        for single in single_turns([turn]):
            _add_turn(parsed, single, f"turn {len(messages) + 1} of {where}", names)
    return parsed


def is_exchange(turn: Any) -> bool:
    """Return whether an object holds the texts of several turns by their roles, `{"human": ..., "assistant": ...}`."""
    return isinstance(turn, Mapping) and len(turn) > 1 and all(key in EXCHANGE_KEYS for key in turn)


def single_turns(turns: Sequence[Any]) -> Iterator[Any]:
    """Yield the turns, and those of exchanges one by one."""
    for turn in turns:
        if not is_exchange(turn):
            yield turn
            continue
        for key, text in turn.items():
            if text is not None and not (text == "" and EXCHANGE_KEYS[key] == "system"):
                yield {"role": EXCHANGE_KEYS[key], "content": text}


def _is_plain(turn: Any) -> bool:
    """Return whether a turn already is a plain message: no dialect, flag or call, as most turns."""
    if not isinstance(turn, dict) or len(turn) != 2:
        return False
    role, content = turn.get("role"), turn.get("content")
    return isinstance(role, str) and role in _PLAIN_ROLES and isinstance(content, str)


def _add_turn(parsed: Turns, turn: Any, where: str, names: ColumnNames) -> None:
    if isinstance(turn, str):
        turn = parse_json(turn, "bad_type", f"{where} must be an object, this is text that is not JSON")
    if not isinstance(turn, Mapping):
        raise RecordError("bad_type", f"{where} must be an object, got {type(turn).__name__}")
    turn = _present(turn, names)
    dialect = _role(turn, where, names)
    content = _content(turn, dialect, where)
    role = "tool" if content.result_of is not None and ROLES[dialect] == "user" else ROLES[dialect]
    message: Message = {"role": role, "content": content.text}
    if content.result_of:
        message["tool_call_id"] = content.result_of
    has_reasoning = content.reasoning or not turn.keys().isdisjoint(REASONING)
    if has_reasoning and (reasoning := _reasoning(turn, content, where)):
        message["reasoning_content"] = reasoning
    message |= {key: value for key, value in turn.items() if key not in _HANDLED}
    if calls := content.calls + [call for key in _CALLS if turn.get(key) for call in parse_calls(turn[key], where)]:
        message["tool_calls"] = calls
        if role != "assistant":
            raise RecordError("bad_tool_call", f"{where} calls a tool, but its role is {role}")
    _check_content(parsed, turn, where)
    if turn.get("tools"):
        parsed.add_tools(parse_tools(turn["tools"], f"tools in {where}"))
    if turn.keys().isdisjoint(training_flags.ALL):
        parsed.trained.append(role == "assistant")
    else:
        _add_flags(parsed, turn, role, content.text, where)
    parsed.messages.append(message)


def _check_content(parsed: Turns, turn: Mapping[str, Any], where: str) -> None:
    """Raise RecordError for media. Note contents of which one is not used."""
    if not turn.keys().isdisjoint(MEDIA) and (media := next((key for key in MEDIA if is_filled(turn.get(key))), None)):
        raise RecordError("not_text", f"{where} has {media}; only text can be scored")
    given = [key for key in CONTENT_KEYS if isinstance(turn.get(key), str)]
    if len(given) > 1 and len({turn[key] for key in given}) > 1:
        parsed.notes.append(f"turns have {' and '.join(f'`{key}`' for key in given)}; `{given[0]}` is used")


def _present(turn: Mapping[str, Any], names: ColumnNames) -> dict[str, Any]:
    """Return the keys of a turn that hold something, by their known names."""
    present = {names.columns.get(key, key): value for key, value in turn.items() if value is not None}
    if present.keys().isdisjoint(ROLE_KEYS):
        return {in_known_case(key): value for key, value in present.items()}
    return present


def in_known_case(name: str) -> str:
    """Return a name in the case of known names: `System Prompt` is `system_prompt`."""
    return name.strip().lower().replace(" ", "_").replace("-", "_")


def _role(turn: Mapping[str, Any], where: str, names: ColumnNames) -> str:
    """Return the role in its dialect, a key of ROLES."""
    given = next((turn[key] for key in ROLE_KEYS if key in turn), None)
    if given is None:
        raise RecordError("missing_field", f"{where} has neither role nor from; its keys are {_listed(turn)}")
    dialect = names.role_of(given) if isinstance(given, str) else None
    if dialect not in ROLES:
        raise RecordError("bad_role", f"{where} has role {str(given)[:80]!r}; known are {', '.join(ROLES)}")
    return dialect


def _content(turn: Mapping[str, Any], dialect: str, where: str) -> Content:
    value = next((turn[key] for key in CONTENT_KEYS if key in turn), None)
    if dialect in CALL_ROLES:
        return Content(calls=parse_calls(value, where)) if value else Content()
    if value is not None and (value or "refusal" not in turn):
        return parse_content(value, where)
    if isinstance(turn.get("refusal"), str):
        return Content(turn["refusal"])
    if any(turn.get(key) for key in (*_CALLS, *REASONING)):
        return Content()
    raise RecordError("missing_field", f"{where} has no content; its keys are {_listed(turn)}")


def _listed(turn: Mapping[str, Any]) -> str:
    return ", ".join(str(key)[:40] for key in list(turn)[:12]) or "none"


def _reasoning(turn: Mapping[str, Any], content: Content, where: str) -> str:
    """Return the reasoning of a turn. Names that hold different texts are an error."""
    given = {key: turn[key] for key in REASONING if turn.get(key)}
    parsed = [parse_content(value, f"{where}: {key}") for key, value in given.items()]
    found = list(dict.fromkeys(filter(None, [*(one.text or one.reasoning for one in parsed), content.reasoning])))
    if len(found) > 1:
        raise RecordError("bad_type", f"{where} gives two different texts of reasoning: in {', '.join(given)}")
    return found[0] if found else ""


def _add_flags(parsed: Turns, turn: Mapping[str, Any], role: str, content: str, where: str) -> None:
    flag = training_flags.read_flag(turn, where) if role == "assistant" else _flag_of_others(turn)
    if role != "assistant" and flag:
        parsed.notes.append(f"a {role} turn is flagged to be trained on; only assistant turns are")
    ranges = training_flags.read_ranges(turn, content, where) if role == "assistant" else ()
    if ranges:
        parsed.ranges[len(parsed.messages)] = ranges
    parsed.trained.append(role == "assistant" and flag is not False)


def _flag_of_others(turn: Mapping[str, Any]) -> bool:
    """Return whether a turn that is not an assistant's is flagged as trained."""
    return any(turn.get(name) in (1, True) for name in training_flags.FLAGS)


def finish(turns: Turns, variables: Mapping[str, Any] = NO_VARIABLES) -> Conversation:
    """Build a conversation. Raises RecordError without a trained assistant turn, or if one is empty.

    variables: variables of the record for the template.
    """
    messages, trained = turns.messages, turns.trained
    if True not in trained:
        if not any(message["role"] == "assistant" for message in messages):
            raise RecordError("no_assistant_turn", f"none of the {len(messages)} turns is an assistant's")
        raise RecordError("no_trained_turn", "the training flags leave out every assistant turn")
    for index, message in enumerate(messages):
        is_blank = trained[index] and (not (text := message["content"]) or text.isspace())
        if is_blank and not (message.get("tool_calls") or message.get("reasoning_content")):
            raise RecordError("empty_response", f"turn {index + 1 - turns.first}, an assistant's, is empty")
    notes = tuple(dict.fromkeys(turns.notes)) if turns.notes else ()
    return Conversation(tuple(messages), turns.tools, tuple(trained), variables, turns.ranges, turns.first, notes)
