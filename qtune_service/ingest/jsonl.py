"""Parse JSON lines into records or problems, and encode values as JSON text.

orjson parses. Lines that it rejects are retried with the standard library, which accepts NaN and Infinity. So are lines
that may contain an integer beyond 64 bits, which orjson rounds silently. A record with half of a surrogate pair is
rejected, because neither a tokenizer nor Parquet can hold it. A line that is a list of turns is the record
`{"messages": [...]}`, or `{"conversations": [...]}` if its turns have the key `from`.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import orjson

from qtune_service.ingest.json_shapes import is_turns

Record = dict[str, Any]
BOM = b"\xef\xbb\xbf"
_MANY_DIGITS = b"0" * 20  # the shortest integer beyond 64 bits has 20 digits
_AS_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else 0 for byte in range(256))
PROBLEM_MARK = b"\x00"
"""First byte of a line that replaces an unreadable record in staged files."""


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """The reason code and a message for an unreadable record."""

    reason: str
    detail: str


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines without their ends. A newline at the end of the data adds no empty line."""
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return lines


def is_blank(line: bytes) -> bool:
    """Return whether a line contains only white space and perhaps a byte order mark."""
    return not line or line.isspace() or (line.startswith(BOM) and not line.removeprefix(BOM).strip())


def parse_line(line: bytes) -> Record | RecordProblem:
    """Parse one record. A byte order mark and surrounding white space are allowed."""
    if _MANY_DIGITS in line.translate(_AS_DIGITS):
        return _parse_slowly(line)
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_slowly(line)
    return value if isinstance(value, dict) else _from_array(value)


def _parse_slowly(line: bytes) -> Record | RecordProblem:
    if line.startswith(PROBLEM_MARK) and (problem := problem_of(line)):
        return problem
    try:
        value = json.loads(line.removeprefix(BOM).decode("utf-8").strip())
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return _problem(error)
    return value if isinstance(value, dict) else _from_array(value)


def _from_array(value: Any) -> Record | RecordProblem:
    """Return the record of a line that is a list of turns, with the list in the column that its turns belong to."""
    if not is_turns(value):
        return _not_an_object(value)
    return {"conversations" if "from" in value[0] and "role" not in value[0] else "messages": value}


def _problem(error: ValueError | RecursionError) -> RecordProblem:
    match error:
        case UnicodeDecodeError():
            return RecordProblem("not_utf8", f"byte {error.start + 1} of the record is not UTF-8: {error.reason}")
        case UnicodeEncodeError():
            return RecordProblem("bad_json", "a \\u escape is half of a surrogate pair, which is no character")
        case json.JSONDecodeError():
            return RecordProblem("bad_json", f"{error.msg} at character {error.pos + 1} of {len(error.doc)}")
        case RecursionError():
            return RecordProblem("bad_json", "nested too deeply")
    return RecordProblem("bad_json", str(error))  # such as an integer with more digits than Python converts


def _not_an_object(value: Any) -> RecordProblem:
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    what = f"a record is a JSON object or a list of turns, this is {kinds.get(type(value), 'a number')}"
    return RecordProblem("not_an_object", what)


def problem_line(problem: RecordProblem) -> bytes:
    """Encode a problem as a line. `parse_line` decodes it."""
    return PROBLEM_MARK + json.dumps([problem.reason, problem.detail]).encode()


def problem_of(line: bytes) -> RecordProblem | None:
    """Decode a line of `problem_line`; return None for other lines."""
    try:
        reason, detail = orjson.loads(line[1:])
    except (ValueError, TypeError):
        return None
    return RecordProblem(str(reason), str(detail))


def encode_value(value: Any) -> str:
    """Encode a value as compact JSON: bytes as base64, times in ISO format, other types as text."""
    return _ENCODER.encode(value)


def decode_value(text: str) -> Any:
    """Decode JSON text exactly, integers of any size included. Text that is not JSON is returned unchanged."""
    try:
        if _MANY_DIGITS not in text.encode("utf-8", "replace").translate(_AS_DIGITS):
            return orjson.loads(text)
    except orjson.JSONDecodeError:
        pass  # NaN, half a surrogate pair, or no JSON
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=_foreign)


def category_of(record: Record, field: str) -> str | None:
    """Return the category of a record, or None: text unchanged, numbers and booleans as JSON."""
    value = record.get(field)
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None
