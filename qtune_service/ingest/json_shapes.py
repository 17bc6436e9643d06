"""Recognize the shapes in which JSON files hold records besides arrays and lines, by parsed values.

- a list of turns: `[{"role": "user", "content": "Hi"}, ...]`, one record
- an object of columns, each an object from row number to value: `{"prompt": {"0": "a", "1": "b"}, ...}`
- an object of columns, each a list: `{"instruction": ["a", "b"], "output": ["c", "d"]}`
- an object of records by row number or name: `{"a1": {"prompt": "a", ...}, "a2": {...}}`; the name becomes the own
  column `id`, unless the records have one
- an object of `columns` and `data`, a list for each row, as `DataFrame.to_json(orient="split")` writes
- an object with one list of records beside other values: `{"version": "1.0", "data": [{"prompt": "a", ...}, ...]}`

An object with a key of RECORD_KEYS is a record, unless that key itself holds such a list. So a record that has lists of
objects, such as its tools, stays one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from qtune_service.errors import DataError
from qtune_service.ingest.fields import (
    CONTENT_KEYS,
    CONTEXT,
    EVERY_FORMAT,
    MASKS,
    PROMPT_TEXTS,
    ROLE_KEYS,
    TURN_COLUMNS,
    Use,
)

SHARED_KEYS = CONTEXT | {name for name, use in EVERY_FORMAT.items() if use in (Use.system, Use.tools, Use.variables)}
"""Keys of context. Beside a list of records they would be lost, so such an object is not unwrapped."""
RECORD_KEYS = SHARED_KEYS | PROMPT_TEXTS | {*TURN_COLUMNS, *MASKS, "input_ids", "labels", "text"}
"""Keys that a record has and an object around records has not."""
_WHOLE_RECORD = frozenset({*TURN_COLUMNS, "prompt", "completion", "instruction", "input_ids", "chosen"})


def is_turn(value: Any) -> bool:
    """Return whether a value is a turn, and not a record with a column `role`."""
    if not isinstance(value, dict) or not _WHOLE_RECORD.isdisjoint(value):
        return False
    has_content = "tool_calls" in value or any(key in value for key in CONTENT_KEYS)
    return has_content and any(isinstance(value.get(key), str) for key in ROLE_KEYS)


def is_turns(value: Any) -> bool:
    """Return whether a value is a list of turns, under any names of their keys."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(turn, dict) and _WHOLE_RECORD.isdisjoint(turn) for turn in value)


def rows_of(name: str, value: Any) -> list[str] | None:
    """Return the records of an object that is a whole file, as JSON text, or None if it is one record.

    Raise DataError for an object that cannot be read in one way only. name: of the file.
    """
    if not isinstance(value, dict) or not value:
        return None
    if all(isinstance(column, dict) and all(map(str.isdecimal, column)) for column in value.values()):
        return _rows_of_numbered(value)
    if _is_split(value):
        return [json.dumps(dict(zip(value["columns"], row, strict=True)), ensure_ascii=False) for row in value["data"]]
    if _are_columns(value):
        return _rows_of_lists(name, value)
    if _are_records(value):
        return _rows_by_name(value)
    keys = wrapper_keys(value)
    if len(keys) > 1:
        raise ambiguous_wrapper(name, keys)
    return [json.dumps(record, ensure_ascii=False) for record in value[keys[0]]] if keys else None


def _rows_of_numbered(columns: Mapping[str, dict[str, Any]]) -> list[str]:
    numbers = dict.fromkeys(number for column in columns.values() for number in column)
    return [
        json.dumps({name: column[number] for name, column in columns.items() if number in column}, ensure_ascii=False)
        for number in sorted(numbers, key=int)
    ]


def _is_split(value: Mapping[str, Any]) -> bool:
    """Return whether an object has the names of columns and a list of values for each row."""
    columns, rows = value.get("columns"), value.get("data")
    if not value.keys() <= {"columns", "index", "data"} or not isinstance(columns, list) or not isinstance(rows, list):
        return False
    are_names = all(isinstance(column, str) for column in columns) and len(set(columns)) == len(columns) > 0
    return are_names and all(isinstance(row, list) and len(row) == len(columns) for row in rows)


def _are_records(value: Mapping[str, Any]) -> bool:
    """Return whether all values are objects with a key of a record, and no key is one."""
    if not RECORD_KEYS.isdisjoint(value):
        return False
    return all(isinstance(record, dict) and not RECORD_KEYS.isdisjoint(record) for record in value.values())


def _rows_by_name(records: Mapping[str, dict[str, Any]]) -> list[str]:
    has_ids = all(map(str.isdecimal, records)) or any("id" in record for record in records.values())
    rows = (record if has_ids else {"id": name, **record} for name, record in records.items())
    return [json.dumps(row, ensure_ascii=False) for row in rows]


def _are_columns(value: Mapping[str, Any]) -> bool:
    """Return whether all values are lists, and some of them can only be columns of a table."""
    if not all(isinstance(column, list) and column for column in value.values()):
        return False
    firsts = {name: next((one for one in column if one is not None), None) for name, column in value.items()}
    if any(map(is_turn, firsts.values())):
        return False
    texts = sum(isinstance(first, str) for first in firsts.values())
    return texts > 0 or any(isinstance(first, list) and name in RECORD_KEYS for name, first in firsts.items())


def _rows_of_lists(name: str, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    lengths = {column: len(values) for column, values in columns.items()}
    if len(set(lengths.values())) > 1:
        each = ", ".join(f"{column[:100]} has {length:,}" for column, length in list(lengths.items())[:10])
        raise DataError(
            f"{name} is an object of columns with different numbers of values: {each}",
            "Give all columns the same number, or write a JSON object for each record.",
        )
    rows = zip(*columns.values(), strict=True)
    return [json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) for row in rows]


def wrapper_keys(value: Mapping[str, Any]) -> list[str]:
    """Return the keys of an object that hold lists of records; none if the object is a record itself."""
    lists = {key: column for key, column in value.items() if _holds_records(column)}
    if any(key in SHARED_KEYS or (key in RECORD_KEYS and key not in lists) for key in value):
        return []
    certain = [key for key, column in lists.items() if _is_certain(column[0])]
    return certain or list(lists)


def _holds_records(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    first = value[0]
    return (isinstance(first, dict) and not is_turn(first)) or (is_turns(first) and is_turn(first[0]))


def _is_certain(record: Any) -> bool:
    return isinstance(record, list) or not RECORD_KEYS.isdisjoint(record)


def ambiguous_wrapper(name: str, keys: Sequence[str]) -> DataError:
    """Return the error for an object with several lists of records."""
    shown = " and ".join(repr(key[:100]) for key in keys[:10])
    return DataError(
        f"{name} is one object with several lists of records: {shown}",
        f"Write one of them to a file of its own, for example with jq '.[\"{keys[0][:100]}\"]'.",
    )


def first_members(head: str) -> dict[str, Any]:
    """Return the first members of an object that is cut off, of the last one only the first element of its list."""
    decoder, found = json.JSONDecoder(), dict[str, Any]()
    at = _skip(head, 0, "{")
    try:
        while True:
            key, at = decoder.raw_decode(head, _skip(head, at, ","))
            at = _skip(head, at, ":")
            try:
                found[key], at = decoder.raw_decode(head, at)
            except json.JSONDecodeError:
                if head[at] == "[":
                    found[key] = [decoder.raw_decode(head, _skip(head, at, "["))[0]]
                return found
    except (ValueError, IndexError, RecursionError):
        return found


def _skip(text: str, at: int, sign: str) -> int:
    """Return the position of the next token, behind `sign` if that comes first."""
    while text[at] in " \t\r\n":
        at += 1
    if text[at] == sign:
        at += 1
    while text[at] in " \t\r\n":
        at += 1
    return at
