"""JSON records: one line to a record or a reason, and values to JSON text.

orjson parses. What it refuses is tried with the standard library, which also takes NaN and Infinity, and so is what
may hold an integer beyond 64 bits, which orjson rounds without a word. A record holding half a surrogate pair is
rejected: neither a tokenizer nor Parquet can hold it.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import orjson

Record = dict[str, Any]
BOM = b"\xef\xbb\xbf"
_MANY_DIGITS = b"0" * 20  # the shortest integer beyond 64 bits has 20 digits
_AS_DIGITS = bytes(ord("0") if chr(byte) in "0123456789" else 0 for byte in range(256))
PROBLEM_MARK = b"\x00"
"""First byte of a line that staging wrote in place of a record that it could not read."""


@dataclass(frozen=True, slots=True)
class RecordProblem:
    """Why a record could not be read; `reason` is a code, `detail` is for people."""

    reason: str
    detail: str


def is_blank(line: bytes) -> bool:
    """Whether a line is no record: nothing but white space, and perhaps a byte order mark."""
    return not line or line.isspace() or (line.startswith(BOM) and not line.removeprefix(BOM).strip())


def parse_line(line: bytes) -> Record | RecordProblem:
    """Parse one record. A byte order mark and surrounding white space are allowed."""
    if _MANY_DIGITS in line.translate(_AS_DIGITS):
        return _parse_slowly(line)
    try:
        value = orjson.loads(line)
    except orjson.JSONDecodeError:
        return _parse_slowly(line)
    return value if isinstance(value, dict) else _not_an_object(value)


def _parse_slowly(line: bytes) -> Record | RecordProblem:
    if line.startswith(PROBLEM_MARK) and (problem := problem_of(line)):
        return problem
    try:
        value = json.loads(line.removeprefix(BOM).decode("utf-8").strip())
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        return _problem(error)
    return value if isinstance(value, dict) else _not_an_object(value)


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
    return RecordProblem("bad_json", str(error))  # such as an integer of more digits than Python converts


def _not_an_object(value: Any) -> RecordProblem:
    kinds = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return RecordProblem("not_an_object", f"a record is a JSON object, this is {kinds.get(type(value), 'a number')}")


def problem_line(problem: RecordProblem) -> bytes:
    """The line that stands for a record that could not be read; `parse_line` gives the problem back."""
    return PROBLEM_MARK + json.dumps([problem.reason, problem.detail]).encode()


def problem_of(line: bytes) -> RecordProblem | None:
    """The problem that `problem_line` wrote; None for other lines."""
    try:
        reason, detail = orjson.loads(line[1:])
    except (ValueError, TypeError):
        return None
    return RecordProblem(str(reason), str(detail))


def encode_value(value: Any) -> str:
    """A value as compact JSON text; bytes as base64, times in ISO form, other foreign values as their text."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_foreign)


def _foreign(value: Any) -> Any:
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def category_of(record: Record, field: str) -> str | None:
    """A record's category: text as it is, numbers and booleans as in JSON; None where there is none."""
    value = record.get(field)
    if isinstance(value, str):
        return value
    return json.dumps(value) if isinstance(value, (bool, int, float)) else None
