"""Detect dataset formats, and parse records into conversations or tokens.

Detection uses the names and types of columns. Each record votes for the first format it fits, in this order: tokenized,
messages, sharegpt, prompt_completion, alpaca, then well-known column pairs. The format with the most votes wins, so
that a few broken rows do not decide. Without a vote the user must name the format or the columns.
- A pair is not detected next to a column such as `context` or `input`, which would be missing in the prompt. A guess
  would score answers without their questions. Such data needs explicit columns.
- Trees, preference pairs and multiple choice are not supported and stay undetected.
- A column of turns may hold role/content or from/value turns, or JSON text of them.
- A prompt that is a list of messages is context: only assistant turns of the completion are trained.
- alpaca joins instruction and input with a newline. History turns are trained like any assistant turn.

`layout` decides once for each set of columns what becomes of each (fields.py). Every format takes a system prompt,
tools and variables of the template from columns of their own (context_columns.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from qtune_service.config import FormatName
from qtune_service.ingest.content import flatten_content
from qtune_service.ingest.context_columns import check_side, read_columns
from qtune_service.ingest.fields import (
    ALPACA,
    CONTENT_KEYS,
    EVERY_FORMAT,
    KNOWN_COLUMNS,
    LABELS,
    MASKS,
    PAIRS,
    ROLE_KEYS,
    SIDE_COLUMNS,
    TEXT_FORMATS,
    TOKENIZED,
    TURN_COLUMNS,
    UNREAD,
    Use,
)
from qtune_service.ingest.messages import NO_VARIABLES, ROLES, Turns, finish, in_known_case, is_exchange, parse_turns
from qtune_service.ingest.records import NO_NAMES, ColumnNames, Conversation, RecordError, Tokenized
from qtune_service.ingest.tokenized import parse_tokens
from qtune_service.ingest.tools import parse_json


def detect_format(records: Sequence[Mapping[str, Any]], names: ColumnNames = NO_NAMES) -> FormatName | None:
    """Return the format of a file by its first valid records, or None. Named columns take precedence."""
    if names.prompt is not None and names.completion is not None:
        fits = any(names.prompt in record and names.completion in record for record in records)
        return "prompt_completion" if fits else None
    if names.messages is not None:
        return "messages" if any(names.messages in record for record in records) else None
    votes = Counter(name for record in records if (name := _format_of(known_names(record, names))) is not None)
    return votes.most_common(1)[0][0] if votes else None


def _format_of(record: Mapping[str, Any]) -> FormatName | None:
    if _is_list(record.get("input_ids")) and any(name in record for name in ("labels", *MASKS)):
        return "tokenized"
    for column in TURN_COLUMNS:
        if has_turns(record.get(column)):
            return "sharegpt" if column == "conversations" else "messages"
    if _is_prompt(record.get("prompt")) and _is_prompt(record.get("completion")):
        return "prompt_completion"
    if isinstance(record.get("instruction"), str) and isinstance(record.get("output"), str):
        return "alpaca"
    return "prompt_completion" if _find_pair(record) else None


def has_turns(value: Any) -> bool:
    """Return whether a value is a list of turns, or JSON text of one."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = parse_json(value, "bad_type", "")
        except RecordError:
            return False
    if not _is_list(value) or len(value) == 0 or not isinstance(value[0], Mapping):
        return False
    if is_exchange(value[0]):
        return True
    turn = {in_known_case(key): item for key, item in value[0].items() if isinstance(key, str)}
    role = next((turn[key] for key in ROLE_KEYS if isinstance(turn.get(key), str)), None)
    has_content = any(key in turn for key in (*CONTENT_KEYS, "tool_calls", "function_call"))
    return role is not None and (has_content or role.strip().lower() in ROLES)


def _is_list(value: Any) -> bool:
    return isinstance(value, np.ndarray) or (isinstance(value, Sequence) and not isinstance(value, str | bytes))


def _is_prompt(value: Any) -> bool:
    return isinstance(value, str) or has_turns(value)


def _find_pair(record: Mapping[str, Any]) -> tuple[str, str] | None:
    for prompt, completion in PAIRS:
        if isinstance(record.get(prompt), str) and isinstance(record.get(completion), str):
            left_out = {c for c in SIDE_COLUMNS - {prompt, completion} if record.get(c)}
            return None if left_out else (prompt, completion)
    return None


def known_names(record: Mapping[str, object], names: ColumnNames) -> Mapping[str, object]:
    """Return a record with known names in place of those that the job maps, and of those in another case."""
    renamed = _renamed(tuple(record), names.messages, tuple(names.columns.items()) if names.columns else ())
    if not renamed:
        return record
    taken = set(renamed.values())
    others = {name: value for name, value in record.items() if name not in renamed and name not in taken}
    return {known: record[name] for name, known in renamed.items()} | others


@lru_cache(maxsize=4096)
def _renamed(columns: tuple[str, ...], messages: str | None, mapped: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Return column -> known name of the columns with another name."""
    given = dict(mapped) if messages is None else {**dict(mapped), messages: "messages"}
    found = {name: given[name] for name in columns if name in given}
    for name in columns:
        known = in_known_case(name)
        if name not in given and known != name and known in KNOWN_COLUMNS and known not in (*columns, *found.values()):
            found[name] = known
    return found


@dataclass(frozen=True, slots=True)
class Layout:
    """The uses of the columns of a record."""

    uses: Mapping[str, Use]
    turns: str | None
    """Column of the turns; None for formats without one."""
    pair: tuple[str, str] | None
    """Columns of prompt and answer in the format prompt_completion."""
    main: tuple[str, ...]
    """Columns of turns, or of prompt and answer."""
    beside: tuple[tuple[str, Use], ...]
    """Known columns beside turns, prompt and answer, which must be looked at."""


@lru_cache(maxsize=4096)
def layout(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: tuple[str, ...],
    pair: tuple[str | None, str | None] = (None, None),
) -> Layout:
    """Return the uses of a record's columns. pair: the prompt and completion columns that the job names."""
    turns = _turn_column(format, columns) if format in ("messages", "sharegpt") else None
    found = _pair(columns, pair) if format == "prompt_completion" else None
    uses = {name: _use(format, name, turns, found) for name in columns}
    main = found or (() if turns is None else (turns,))
    read = {*main, *(ALPACA if format == "alpaca" else ())}
    beside = tuple((name, use) for name, use in uses.items() if use is not Use.own and name not in read)
    return Layout(uses, turns, found, main, beside)


def _use(format: FormatName, name: str, turns: str | None, pair: tuple[str, str] | None) -> Use:  # noqa: A002
    if format == "tokenized":
        return Use.tokens if name in TOKENIZED else Use.label if name in LABELS else Use.own
    if name == turns:
        return Use.turns
    if pair is not None and name in pair:
        return Use.prompt if name == pair[0] else Use.answer
    if format == "alpaca" and name in ALPACA:
        return ALPACA[name]
    if turns is None and name in TEXT_FORMATS:
        return TEXT_FORMATS[name]
    return EVERY_FORMAT.get(name) or (Use.unread if name in UNREAD else Use.own)


def _turn_column(format: FormatName, columns: Sequence[str]) -> str:  # noqa: A002
    known = TURN_COLUMNS if format == "messages" else ("conversations", *TURN_COLUMNS)
    return next((name for name in known if name in columns), known[0])


def _pair(columns: Sequence[str], named: tuple[str | None, str | None]) -> tuple[str, str]:
    if named[0] is not None and named[1] is not None:
        return named[0], named[1]
    return next((pair for pair in PAIRS if pair[0] in columns and pair[1] in columns), PAIRS[0])


def uses(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: Iterable[str],
    names: ColumnNames = NO_NAMES,
) -> dict[str, Use]:
    """Return the use of each column of a file."""
    known = {name: next(iter(known_names({name: None}, names))) for name in columns}
    found = layout(format, tuple(known.values()), (names.prompt, names.completion)).uses
    return {name: found[known_name] for name, known_name in known.items()}


def used_columns(
    format: FormatName,  # noqa: A002 - the name that users know
    columns: Iterable[str],
    names: ColumnNames = NO_NAMES,
) -> frozenset[str]:
    """Return the columns of a file that are looked at in a format. The others are only carried along."""
    return frozenset(name for name, use in uses(format, columns, names).items() if use is not Use.own)


def to_conversation(
    record: Mapping[str, Any],
    format: FormatName,  # noqa: A002 - the name that users know
    names: ColumnNames = NO_NAMES,
) -> Conversation | Tokenized:
    """Parse one record. Raises RecordError if it does not fit its format."""
    if format == "auto":
        raise ValueError("'auto' is not the format of a record: call detect_format first")
    if names.completion or names.messages:
        check_side(names)
    record = known_names(record, names)
    found = layout(format, tuple(record), (names.prompt, names.completion))
    if found.main and (record.get(found.main[0]) is None or record.get(found.main[-1]) is None):
        # Arrow pads a union of columns with null.
        record = {name: value for name, value in record.items() if value is not None}
        found = layout(format, tuple(record), (names.prompt, names.completion))
    if format == "tokenized":
        read_columns(Turns(), record, found.beside, names)
        return parse_tokens(record)
    if format in ("messages", "sharegpt"):
        assert found.turns is not None
        turns = parse_turns(_require(record, found.turns, names), names.messages or found.turns, names)
    elif format == "alpaca":
        turns = _from_alpaca(record, names)
    elif format == "prompt_completion":
        assert found.pair is not None
        turns = _from_pair(record, found.pair, names)
    else:
        raise ValueError(f"no reader for records of the format {format!r}")
    return finish(turns, read_columns(turns, record, found.beside, names) if found.beside else NO_VARIABLES)


def _require(record: Mapping[str, Any], column: str, names: ColumnNames) -> Any:
    value = record.get(column)
    if value is None:
        have = ", ".join(map(str, list(record)[:40])) or "none"
        shown = names.messages if names.messages and column == "messages" else column
        raise RecordError("missing_field", f"no value in column {shown!r}; the record's columns are {have}")
    return value


# --- formats without a column of turns


def _from_alpaca(record: Mapping[str, Any], names: ColumnNames) -> Turns:
    instruction = flatten_content(_require(record, "instruction", names), "column instruction")
    given = record.get("input")
    second = "" if given is None else flatten_content(given, "column input")
    prompt = "\n".join(part for part in (instruction, second) if part)
    turns = Turns()
    _add_history(turns, record)
    _add_text(turns, "user", prompt)
    _add_answer(turns, record, _require(record, "output", names), "output")
    return turns


def _from_pair(record: Mapping[str, Any], pair: tuple[str, str], names: ColumnNames) -> Turns:
    prompt, completion = (_as_turns(_require(record, column, names), column, names) for column in pair)
    turns = Turns()
    _add_history(turns, record)
    if isinstance(completion, Turns) and _repeats(completion, prompt):
        pass  # the completion is the whole conversation
    elif isinstance(prompt, Turns):
        prompt.trained, prompt.ranges = [False] * len(prompt.trained), {}
        turns.extend(prompt)
    else:
        _add_text(turns, "user", prompt)
    if isinstance(completion, Turns):
        turns.extend(completion)
    else:
        _add_answer(turns, record, completion, pair[1])
    return turns


def _as_turns(value: Any, column: str, names: ColumnNames) -> Turns | str:
    if isinstance(value, Mapping) and any(key in value for key in ROLE_KEYS):
        value = [value]
    if has_turns(value):
        return parse_turns(value, column, names)
    return flatten_content(value, f"column {column}")


def _repeats(completion: Turns, prompt: Turns | str) -> bool:
    """Return whether a completion begins with the prompt, as the sides of preference pairs often do."""
    if isinstance(prompt, str):
        first = next((m["content"] for m in completion.messages if m["role"] == "user"), None)
        return first is not None and prompt.strip() == first.strip()
    return completion.messages[: len(prompt.messages)] == prompt.messages


def _add_history(turns: Turns, record: Mapping[str, Any]) -> None:
    history = record.get("history")
    if isinstance(history, str):
        history = parse_json(history, "bad_type", "history is text that is not JSON") if history.strip() else None
    if history is not None and not _is_list(history):
        raise RecordError("bad_type", f"history must be a list of pairs, got {type(history).__name__}")
    for number, pair in enumerate(() if history is None else history, 1):
        if not _is_list(pair) or len(pair) != 2:
            raise RecordError("bad_type", f"entry {number} of history must be a pair of user and assistant text")
        _add_text(turns, "user", flatten_content(pair[0], f"entry {number} of history"))
        _add_text(turns, "assistant", flatten_content(pair[1], f"entry {number} of history"))


def _add_answer(turns: Turns, record: Mapping[str, Any], value: Any, column: str) -> None:
    _add_text(turns, "assistant", flatten_content(value, f"column {column}"))
    if reasoning := record.get("reasoning_content"):
        turns.messages[-1]["reasoning_content"] = flatten_content(reasoning, "column reasoning_content")


def _add_text(turns: Turns, role: str, text: str) -> None:
    turns.messages.append({"role": role, "content": text})
    turns.trained.append(role == "assistant")
