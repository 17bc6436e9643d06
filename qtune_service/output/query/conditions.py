"""A user's condition, checked before it is evaluated: one SQL expression over the fields, and nothing else.

DuckDB's own parser says what the text means; what it found must be on the lists here, and what is not known is refused.
So there are no subqueries, other tables or statements, whatever the text pretends to close or to comment out, and every
column that it names is known: only those are read.

DuckDB's memory limit does not count the texts that functions make (measured: `repeat(s, 100000000)` ended the process
under a limit of 256 MB). Hence the list of functions: each makes at most about as much as it is given, and an
expression has a bounded number of them. That leaves out, among others, repeat, lpad, replace, ||, range, string_split,
format and lambdas, which a condition can do without.

Functions that recurse natively over what they are given are left out too: json_contains follows a text of brackets as
deep as it is, and ends the process. So are aggregates of lists by name (list_aggr): some, as string_agg, build long
texts. list_sum, list_min, list_max, list_avg and list_count are on the list.

These lists are the first barrier. The second: the service evaluates conditions in child processes (questions/).

DuckDB with nothing but the tables that it is given: no files, no network, no extensions, no settings to change.

conditions.py keeps out what this does not bound. The service evaluates conditions in child processes (questions/).
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import pyarrow as pa

from qtune_service.errors import QueryError
from qtune_service.output.query.fields import Records, quoted

if TYPE_CHECKING:
    import duckdb

MAX_EXPRESSION_DEPTH = "250"
"""Beyond, DuckDB's parser, which recurses, refuses a statement. Parentheses count too."""
MAX_ERROR_CHARS = 500
"""Of what DuckDB says: it quotes values, which may be as long as a record."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a question may take."""

    memory_bytes: int = 512 << 20
    """Of sorting and grouping; the tables themselves are not counted."""
    threads: int = 2
    seconds: float | None = None


class Sandbox:
    """A connection for one question. `hint` is shown with each error: what can be asked for."""

    def __init__(self, limits: Limits, hint: str = "") -> None:
        import duckdb  # 30 MB, which only those pay who ask

        self._limits, self._hint = limits, hint
        settings = {
            "enable_external_access": "false",
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "allow_community_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": "",
            "memory_limit": f"{limits.memory_bytes}B",
            "threads": str(limits.threads),
            "max_expression_depth": MAX_EXPRESSION_DEPTH,
        }
        self._connection = duckdb.connect(":memory:", config=settings)
        self._connection.execute("SET lock_configuration = true")
        self._is_late = False
        self._timer = None if limits.seconds is None else threading.Timer(limits.seconds, self._stop)

    def __enter__(self) -> Self:
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._connection.close()

    def table(self, sql: str, tables: Mapping[str, pa.Table]) -> pa.Table:
        """The rows of a statement over some tables. Raises QueryError."""
        with self._explained():
            for name, table in tables.items():
                self._connection.register(name, table)
            found: pa.Table = self._connection.sql(sql).to_arrow_table()
            return found

    def _stop(self) -> None:
        self._is_late = True
        self._connection.interrupt()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        import duckdb

        late = QueryError(f"the query took more than {self._limits.seconds} s", "Ask for less, or of a smaller output.")
        if self._is_late:
            raise late
        try:
            yield
        except duckdb.InterruptException:
            raise late from None
        except duckdb.OutOfMemoryException as error:
            megabytes = self._limits.memory_bytes >> 20
            raise QueryError(
                f"the query needs more than {megabytes} MiB", "Give it a --limit, or narrow it."
            ) from error
        except UnicodeDecodeError as error:  # a function cut a character in two
            raise QueryError(f"the query failed: a value is not UTF-8 text ({error.reason})", self._hint) from error
        except duckdb.Error as error:
            raise QueryError(f"the query failed: {_plain(error)}", self._hint) from error


def _plain(error: duckdb.Error) -> str:
    """What DuckDB says, without its kind and the statement, of which the user wrote a part only."""
    text = str(error).split("\n\nLINE", 1)[0].strip()
    kind, _, rest = text.partition(": ")
    return (rest if kind.endswith("Error") else text)[:MAX_ERROR_CHARS]


MAX_CHARS, SHOWN_CHARS = 20_000, 200
MAX_NODES, MAX_CALLS = 200, 50
"""Parts of an expression, constants not counted, and of these calls: each may hold a copy of a shard's text."""
MAX_DEPTH = 100
"""Of expressions within each other."""

KINDS = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"}
    | {"OPERATOR", "TYPE"}
)


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FUNCTIONS = _words("""
    + - * / // % ** ^ @ & | << >> ~ abs add ceil ceiling divide exp floor greatest least ln log log10 log2 mod multiply
    pow power round sign sqrt subtract trunc isfinite isinf isnan bit_count xor hash
    ~~ !~~ ~~* !~~* ~~~ ^@ like_escape not_like_escape ilike_escape not_ilike_escape contains starts_with ends_with
    prefix suffix lower lcase upper ucase trim ltrim rtrim left right substr substring split_part strip_accents
    length len strlen char_length character_length octet_length position strpos instr ascii ord unicode md5
    regexp_matches regexp_full_match regexp_extract
    array_extract list_extract list_element element_at array_length list_contains list_has array_contains array_has
    list_has_any list_has_all array_has_any array_has_all && @> <@ list_position list_indexof array_position
    array_indexof list_value list_sum list_min list_max list_avg list_count list_unique
    cardinality map_contains map_extract map_extract_value map_keys map_values
    struct_extract struct_extract_at struct_pack row
    -> ->> json_extract json_extract_string json_extract_path json_extract_path_text json_value json_exists json_type
    json_valid json_array_length json_keys
    date_part datepart date_trunc datetrunc date_diff datediff year month day hour minute second dayofweek weekday week
    quarter epoch epoch_ms strptime try_strptime now today current_date get_current_timestamp
    to_years to_months to_weeks to_days to_hours to_minutes to_seconds
    typeof nullif ifnull
""")
TYPES = _words("""
    bool boolean tinyint smallint int integer bigint hugeint utinyint usmallint uinteger ubigint float real double
    decimal numeric varchar text string char date time timestamp timestamptz interval json
""") | {"timestamp with time zone"}
"""What values may be cast to. Arrays of a fixed length are as large as their type says."""


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that may be evaluated."""

    sql: str
    fields: frozenset[str]
    """What it names."""


def parse_condition(text: str, records: Records, sandbox: Sandbox) -> Condition:
    """Check a condition. Raises QueryError that says what is wrong, and which columns there are."""
    if len(text) > MAX_CHARS:
        raise QueryError(f"the condition has {len(text):,} characters, more than {MAX_CHARS:,}")
    if not text.strip():
        raise QueryError("the condition is empty", records.hint())
    query = f"SELECT 1 FROM records WHERE (\n{text}\n)"  # noqa: S608 - parsed only
    try:
        parsed = sandbox.table(f"SELECT json_serialize_sql({quoted(query)}) AS parsed", {})
        found = json.loads(parsed["parsed"][0].as_py())
    except RecursionError:
        raise _refused("it is nested too deeply", text, records) from None
    if found["error"]:
        raise QueryError(
            f"the condition is not valid SQL: {found['error_message'][:MAX_ERROR_CHARS]}\n  {text[:SHOWN_CHARS]}",
            records.hint(),
        )
    expression = _sole_condition(found["statements"])
    if expression is None:
        raise _refused("it must be one expression", text, records)
    return Condition(text, frozenset(_checked(expression, text, records)))


def _sole_condition(statements: list[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The expression, if that is all there is."""
    if len(statements) != 1:
        return None
    node = dict(statements[0]["node"])
    condition, select = node.pop("where_clause", None), node.pop("select_list", [])
    is_bare = node.pop("type") == "SELECT_NODE" and len(select) == 1 and select[0]["class"] == "CONSTANT"
    table = node.pop("from_table", {})
    is_bare &= table.get("type") == "BASE_TABLE" and table.get("table_name") == "records" and not table.get("sample")
    node.pop("aggregate_handling", None)
    rest = [value for value in node.values() if value not in (None, [], {"map": []})]
    return condition if is_bare and not rest else None


def _checked(expression: Any, text: str, records: Records) -> Iterator[str]:
    """The fields that an expression names."""
    deep = [(node, depth) for node, depth in _nodes(expression) if node["class"] != "CONSTANT"]
    if max((depth for _, depth in deep), default=0) > MAX_DEPTH:
        raise _refused(f"it is nested more than {MAX_DEPTH} levels deep", text, records)
    nodes = [node for node, _ in deep]
    if len(nodes) > MAX_NODES or sum(node["class"] in ("FUNCTION", "CAST") for node in nodes) > MAX_CALLS:
        raise _refused(f"it has more than {MAX_NODES} parts, or {MAX_CALLS} calls of functions", text, records)
    for node in nodes:
        kind = node["class"]
        if kind not in KINDS:
            raise _refused(f"{_WORDS.get(kind, kind.lower())} cannot be used", text, records)
        if kind == "FUNCTION" and not _is_known_function(node):
            raise _refused(f"the function {node['function_name']} cannot be used, or not so", text, records)
        if kind == "TYPE" and node["type_name"].lower() not in TYPES:
            raise _refused(f"the type {node['type_name']} cannot be used", text, records)
        if kind == "COLUMN_REF":
            path = node["column_names"]
            is_qualified = path[0].lower() == "records" and len(path) > 1
            yield records.field(path[1 if is_qualified else 0]).name


def _is_known_function(node: Mapping[str, Any]) -> bool:
    """Whether a call is on the list, and a path into JSON one text: of many paths each would give a copy."""
    name = node["function_name"].lower()
    is_plain = not any((node["schema"], node["catalog"], node["filter"], node["distinct"]))
    if name.startswith(("json", "->")) and any(a["expression"]["class"] != "CONSTANT" for a in node["arguments"][1:]):
        return False
    return is_plain and name in FUNCTIONS


_WORDS = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "LAMBDA": "a lambda",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "#",
}


def _nodes(value: Any) -> Iterator[tuple[Mapping[str, Any], int]]:
    """All expressions within one, and how deep each is inside of others."""
    left = [(value, 0)]
    while left:
        value, depth = left.pop()
        if isinstance(value, dict):
            if "class" in value:
                yield value, depth
                depth += 1
            left += [(inner, depth) for inner in value.values()]
        elif isinstance(value, list):
            left += [(inner, depth) for inner in value]


def _refused(why: str, text: str, records: Records) -> QueryError:
    return QueryError(f"the condition is refused: {why}\n  {text[:SHOWN_CHARS]}", records.hint())
