"""Infer the Arrow schema of JSON lines, and build the carried columns of JSON records.

Arrow's JSON reader infers types at hundreds of MB/s, but not exactly: it reads text that looks like a time as a time,
and large integers next to floats as floats. So its result is corrected (times are text, since JSON has none). If it
cannot be trusted or the reader fails, every value is inspected in Python. Blocks of 1 MiB bound the cost of one unusual
line. Two inputs never reach Arrow: very deep nesting, because its parser recurses without a limit, and exploding
fields, because it fills a cell for every row and field.

Arrow reads a missing key and a stated null as the same null. Where its columns have nulls (`_Nulls`), the lines that
contain `null` are parsed, and the nulls that they state are counted at these positions. The others are missing keys.

Arrow builds columns from text five times as fast as from Python values. With an explicit schema it infers nothing and
rejects values that it cannot hold exactly: a number instead of text, a duplicate column, a field outside of the schema,
NaN, integers beyond 64 bits. In these cases, and for types that JSON lacks or that Arrow reads differently (times, JSON
text), the columns are built from parsed values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson

from qtune_service.ingest.jsonl import Record, RecordProblem, parse_line
from qtune_service.ingest.rows import column_of
from qtune_service.ingest.schema import (
    EXACT_FLOAT,
    MAX_COLUMNS,
    MAX_DEPTH,
    MAX_STRUCT_FIELDS,
    Keys,
    holds_json,
    is_json,
    json_field,
    keys_of,
    too_many_columns,
    unify,
    wide_field,
    with_keys,
)

BLOCK_BYTES = 1 << 20
MAX_BRACKETS = 5000
SAMPLE_LINES = 32
_NULL_VALUE = re.compile(rb":\s*null\s*[,}]")


def infer_lines(lines: Sequence[bytes]) -> pa.Schema:
    """Infer the schema of JSON lines. Invalid lines are ignored."""
    return unify(_infer_block(block) for block in _blocks(lines))


def _blocks(lines: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    start = size = 0
    for index, line in enumerate(lines):
        size += len(line)
        if size >= BLOCK_BYTES:
            yield lines[start : index + 1]
            start, size = index + 1, 0
    if start < len(lines):
        yield lines[start:]


def _infer_block(lines: Sequence[bytes]) -> pa.Schema:
    fast = _infer_fast(lines)
    if fast is not None:
        return fast
    parsed = (parse_line(line) for line in lines)
    return infer_records(record for record in parsed if isinstance(record, dict))


def _infer_fast(lines: Sequence[bytes]) -> pa.Schema | None:
    if any(line.count(b"{") + line.count(b"[") > MAX_BRACKETS for line in lines) or _is_ragged(lines):
        return None
    data = b"\n".join(lines)
    options = pajson.ReadOptions(block_size=max(len(data) + 1, 1024), use_threads=False)
    try:
        table = pajson.read_json(cast("Any", pa.BufferReader(data)), read_options=options)  # one block, so one chunk
    except (pa.ArrowException, UnicodeDecodeError):
        return None
    columns = {name: table.column(i).chunk(0) for i, name in enumerate(table.column_names)}
    nulls = _nulls_of(columns, 0, 0)
    if nulls:
        _count_stated(nulls, lines)
    try:
        return pa.schema([_trusted(array, name, nulls.get(name)) for name, array in columns.items()])
    except _UntrustedError:
        return None


def _is_ragged(lines: Sequence[bytes]) -> bool:
    """Return whether a sample has exploding fields. Arrow would fill gigabytes of rows x fields cells."""
    parsed = (parse_line(line) for line in lines[:: max(1, len(lines) // SAMPLE_LINES)])
    records = [record for record in parsed if isinstance(record, dict)]
    seen = infer_records(records)
    usual = 2 * max(map(len, records), default=0) + 8
    return len(seen) > usual or any(holds_json(field) for field in seen)


class _UntrustedError(Exception):
    """Arrow's inferred type may be inexact."""


def _trusted(array: Any, name: str, nulls: _Nulls | None, depth: int = 0) -> pa.Field[Any]:
    """Return the corrected field of a column that Arrow inferred, with the keys that its nulls stand for."""
    if nulls is None or not nulls.count:
        return _trusted_kind(array, name, nulls, depth)
    if nulls.stated > nulls.count:  # a line states a key twice
        raise _UntrustedError
    keys = (Keys.NULL if nulls.stated else Keys.NONE) | (Keys.MISSING if nulls.stated < nulls.count else Keys.NONE)
    found = _trusted_kind(array, name, nulls, depth)
    return with_keys(found, keys_of(found) | keys)


def _trusted_kind(array: Any, name: str, nulls: _Nulls | None, depth: int) -> pa.Field[Any]:
    kind = array.type
    if depth > MAX_DEPTH:
        return json_field(name)
    if pa.types.is_struct(kind):
        if kind.num_fields > MAX_STRUCT_FIELDS:
            return json_field(name)
        of = nulls.fields if nulls else {}
        names = [child.name for child in kind.fields]
        children = [_trusted(array.field(i), child, of.get(child), depth + 1) for i, child in enumerate(names)]
        return with_keys(pa.field(name, pa.struct(children)), Keys.JSON)
    if pa.types.is_list(kind):
        item = _trusted(array.values, "item", nulls.item if nulls else None, depth + 1)
        return pa.field(name, pa.list_(item))
    return _trusted_plain(array, name)


def _trusted_plain(array: Any, name: str) -> pa.Field[Any]:
    kind = array.type
    if pa.types.is_integer(kind):
        return wide_field(name, kind) if _largest(array) > EXACT_FLOAT else pa.field(name, kind)
    if pa.types.is_floating(kind):
        if _largest(array) >= EXACT_FLOAT:  # may contain rounded integers
            raise _UntrustedError
        return pa.field(name, kind)
    return pa.field(name, kind if pa.types.is_null(kind) or pa.types.is_boolean(kind) else pa.string())


def _largest(array: Any) -> Any:
    ends: dict[str, Any] = pc.min_max(array).as_py()  # type: ignore[assignment]
    return max(abs(ends["min"] or 0), abs(ends["max"] or 0))


# --- nulls of Arrow's reader


@dataclass(slots=True)
class _Nulls:
    """The nulls at one position of the records, and the positions with nulls below it."""

    count: int = 0
    """Nulls that are a missing key or a stated null."""
    stated: int = 0
    fields: dict[str, _Nulls] = field(default_factory=dict)
    item: _Nulls | None = None


def _nulls_of(columns: Mapping[str, Any], num_above: int, depth: int) -> dict[str, _Nulls]:
    """Return the positions with nulls below some fields. num_above: nulls of the struct that holds them."""
    found = {}
    for name, array in columns.items():
        below = _nulls_below(array, depth + 1)
        below.count = array.null_count - num_above
        if below.count or below.fields or below.item:
            found[name] = below
    return found


def _nulls_below(array: Any, depth: int) -> _Nulls:
    kind = array.type
    if pa.types.is_struct(kind) and kind.num_fields <= MAX_STRUCT_FIELDS and depth <= MAX_DEPTH:
        children = dict(zip([child.name for child in kind.fields], array.flatten(), strict=True))
        return _Nulls(fields=_nulls_of(children, array.null_count, depth))
    if pa.types.is_list(kind) and depth <= MAX_DEPTH:
        item = _nulls_below(array.values, depth + 1)
        return _Nulls(item=item if item.fields or item.item else None)
    return _Nulls()


def _count_stated(nulls: Mapping[str, _Nulls], lines: Sequence[bytes]) -> None:
    """Count the nulls that the lines state."""
    for line in lines:
        if b"null" in line and _NULL_VALUE.search(line):
            record = parse_line(line)
            if isinstance(record, dict):
                _count_stated_fields(nulls, record)


def _count_stated_fields(nulls: Mapping[str, _Nulls], value: Record) -> None:
    for name, of in nulls.items():
        if name not in value:
            continue
        if value[name] is None:
            of.stated += 1
        elif of.fields or of.item:
            _count_stated_below(of, value[name])


def _count_stated_below(of: _Nulls, value: Any) -> None:
    if of.fields:
        if isinstance(value, dict):
            _count_stated_fields(of.fields, value)
    elif of.item and isinstance(value, list):
        for one in value:
            _count_stated_below(of.item, one)


# --- inference in Python


def infer_records(records: Iterable[Record]) -> pa.Schema:
    """Infer the schema of parsed records: exact, and about ten times slower."""
    root = _Seen()
    for record in records:
        root.see_fields(record, 0, MAX_COLUMNS)
        if root.is_exploded:
            raise too_many_columns(root.fields)
    return pa.schema(root.children())


class _Seen:
    """Types and value range at one position of the records."""

    __slots__ = ("fields", "highest", "is_exploded", "is_null", "item", "kinds", "lowest", "num_objects", "num_seen")

    def __init__(self) -> None:
        self.num_seen = 0
        self.num_objects = 0
        self.is_null = False  # at least once
        self.kinds: set[type] = set()
        self.fields: dict[str, _Seen] = {}
        self.item: _Seen | None = None
        self.lowest = self.highest = 0
        self.is_exploded = False

    def see(self, value: Any, depth: int) -> None:
        self.num_seen += 1
        if value is None:
            self.is_null = True
        if value is None or self.is_exploded:
            return
        kind = type(value)
        self.kinds.add(kind)
        if kind is int:
            self.lowest, self.highest = min(self.lowest, value), max(self.highest, value)
        elif depth > MAX_DEPTH:
            self.is_exploded = True
        elif kind is dict:
            self.see_fields(value, depth, MAX_STRUCT_FIELDS)
        elif kind is list:
            self.item = self.item or _Seen()
            for one in value:
                self.item.see(one, depth + 1)

    def see_fields(self, value: Record, depth: int, most: int) -> None:
        self.num_objects += 1
        for name, one in value.items():
            self.fields.setdefault(name, _Seen()).see(one, depth + 1)
        if len(self.fields) > most:
            self.is_exploded = True

    def children(self) -> list[pa.Field[Any]]:
        """Return the fields of its objects, with what they say about their keys."""
        fields = []
        for name, seen in self.fields.items():
            found = seen.field(name)
            keys = Keys.NULL if seen.is_null else Keys.NONE
            missing = Keys.MISSING if seen.num_seen < self.num_objects else Keys.NONE
            fields.append(with_keys(found, keys_of(found) | keys | missing))
        return fields

    def field(self, name: str) -> pa.Field[Any]:
        if self.is_exploded or not -(1 << 63) <= self.lowest <= self.highest < 1 << 63:
            return json_field(name)
        if len(self.kinds) > 1:
            is_exact = max(-self.lowest, self.highest) <= EXACT_FLOAT
            return pa.field(name, pa.float64()) if self.kinds == {int, float} and is_exact else json_field(name)
        kind = next(iter(self.kinds), None)
        if kind is dict:
            return with_keys(pa.field(name, pa.struct(self.children())), Keys.JSON)
        if kind is list:
            return pa.field(name, pa.list_(self.item.field("item") if self.item else pa.field("item", pa.null())))
        if kind is int and max(-self.lowest, self.highest) > EXACT_FLOAT:
            return wide_field(name, pa.int64())
        return pa.field(name, _PLAIN[kind])


_PLAIN: dict[type | None, Any] = {
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    None: pa.null(),
}


def own_columns(lines: Sequence[bytes], records: Sequence[Record | RecordProblem], schema: pa.Schema) -> pa.Table:
    """Build the columns of records parsed from lines. A record with a problem is a row of nulls."""
    good = all(isinstance(record, dict) for record in records)
    if good and len(lines) and len(schema) and all(map(_is_plain, schema)):
        table = _read(lines, schema)
        if table is not None and table.num_rows == len(lines):
            return table
    rows = [record if isinstance(record, dict) else {} for record in records]
    columns = [column_of(rows, field) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _is_plain(field: pa.Field[Any]) -> bool:
    """Return whether JSON has values of the type and Arrow reads them unchanged."""
    of = field.type
    if pa.types.is_struct(of):
        return all(map(_is_plain, of.fields))
    if pa.types.is_list(of):
        return not pa.types.is_null(of.value_type) and _is_plain(of.value_field)  # Arrow's reader miscounts nulls there
    is_plain = of in (pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string())
    return is_plain and not is_json(field)


def _read(lines: Sequence[bytes], schema: pa.Schema) -> pa.Table | None:
    data = b"\n".join(lines)
    read = pajson.ReadOptions(block_size=max(len(data) + 1, 1024), use_threads=False)
    parse = pajson.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error")
    try:
        table = pajson.read_json(cast("Any", pa.BufferReader(data)), read_options=read, parse_options=parse)
        table.validate()
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, UnicodeDecodeError):
        return None
