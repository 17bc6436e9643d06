"""Conditions of users: one SQL expression over the fields, checked before DuckDB evaluates it in a sandbox.

DuckDB's own parser parses the text, and every node of the result must be on the lists here. Subqueries, other tables
and statements are refused, even if the text closes a bracket or comments out the rest. Every column of the expression
is known, and only these columns are read.

DuckDB's memory limit does not count the texts that functions build (measured: `repeat(s, 100000000)` ended the process
under a limit of 256 MB). The listed functions each build about as much as their input at most, and an expression has a
limited number of them. This excludes repeat, lpad, replace, ||, range, string_split, format and lambdas, among others,
which conditions do not need. Functions that recurse natively over their input are excluded too: json_contains follows
nested brackets to any depth and ends the process. So are aggregates of lists by name (list_aggr), since some, such as
string_agg, build long texts. list_sum, list_min, list_max, list_avg and list_count are on the list.

The sandbox is a DuckDB connection with the given tables only: no files, network, extensions or changes of settings. The
lists are the first barrier. As the second, the service evaluates conditions in child processes (server/questions/).
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


def _split(names: str) -> frozenset[str]:
    return frozenset(names.split())


MAX_EXPRESSION_DEPTH = "250"
"""DuckDB's parser recurses. It refuses statements beyond this depth; parentheses count too."""
MAX_ERROR_CHARS = 500
"""Limit on DuckDB's messages, which quote values as long as a record."""
MAX_CHARS, SHOWN_CHARS = 20_000, 200
MAX_NODES, MAX_CALLS = 200, 50
"""Parts of an expression without constants, and calls in it. Each call may hold a copy of a shard's text."""
MAX_DEPTH = 100
"""Levels of nested expressions."""
KINDS = frozenset(
    {"BETWEEN", "CASE", "CAST", "COLLATE", "COLUMN_REF", "COMPARISON", "CONJUNCTION", "CONSTANT", "FUNCTION"}
    | {"OPERATOR", "TYPE"}
)
FUNCTIONS = _split("""
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
TYPES = _split("""
    bool boolean tinyint smallint int integer bigint hugeint utinyint usmallint uinteger ubigint float real double
    decimal numeric varchar text string char date time timestamp timestamptz interval json
""") | {"timestamp with time zone"}
"""Types of casts. Arrays of a fixed length are excluded, since their type decides their size."""
_UNSUPPORTED = {
    "SUBQUERY": "a subquery",
    "WINDOW": "a window function",
    "LAMBDA": "a lambda",
    "STAR": "*",
    "PARAMETER": "a parameter",
    "POSITIONAL_REFERENCE": "#",
}


@dataclass(frozen=True, slots=True)
class Limits:
    """The resources that a query may use."""

    memory_bytes: int = 512 << 20
    """For sorting and grouping, without the tables themselves."""
    threads: int = 2
    seconds: float | None = None


class Sandbox:
    """A connection for one query. Each error shows `hint`, the available columns."""

    def __init__(self, limits: Limits, hint: str = "") -> None:
        import duckdb  # 30 MB, needed only for queries

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
        """Evaluate a statement over some tables and return its rows. Raise QueryError."""
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

        late = QueryError(
            f"the query took more than {self._limits.seconds} s", "Narrow the query, or use a smaller output."
        )
        if self._is_late:
            raise late
        try:
            yield
        except duckdb.InterruptException:
            raise late from None
        except duckdb.OutOfMemoryException as error:
            megabytes = self._limits.memory_bytes >> 20
            raise QueryError(
                f"the query needs more than {megabytes} MiB", "Set a limit, or narrow the query."
            ) from error
        except UnicodeDecodeError as error:  # a function split a character
            raise QueryError(f"the query failed: a value is not UTF-8 text ({error.reason})", self._hint) from error
        except duckdb.Error as error:
            raise QueryError(f"the query failed: {_plain(error)}", self._hint) from error


def _plain(error: duckdb.Error) -> str:
    """Return DuckDB's message without its kind and the statement, of which the user wrote only a part."""
    text = str(error).split("\n\nLINE", 1)[0].strip()
    kind, _, rest = text.partition(": ")
    return (rest if kind.endswith("Error") else text)[:MAX_ERROR_CHARS]


@dataclass(frozen=True, slots=True)
class Condition:
    """A condition that may be evaluated."""

    sql: str
    fields: frozenset[str]
    """The fields of the condition."""


def parse_condition(text: str, records: Records, sandbox: Sandbox) -> Condition:
    """Check a condition. Raise QueryError with the reason and the available columns."""
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
    """Return the expression if the statements consist of it alone."""
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
    """Yield the fields of an expression. Raise QueryError for a part that is not on the lists."""
    deep = [(node, depth) for node, depth in _nodes(expression) if node["class"] != "CONSTANT"]
    if max((depth for _, depth in deep), default=0) > MAX_DEPTH:
        raise _refused(f"it is nested more than {MAX_DEPTH} levels deep", text, records)
    nodes = [node for node, _ in deep]
    if len(nodes) > MAX_NODES or sum(node["class"] in ("FUNCTION", "CAST") for node in nodes) > MAX_CALLS:
        raise _refused(f"it has more than {MAX_NODES} parts or {MAX_CALLS} function calls", text, records)
    for node in nodes:
        kind = node["class"]
        if kind not in KINDS:
            raise _refused(f"{_UNSUPPORTED.get(kind, kind.lower())} is not supported", text, records)
        if kind == "FUNCTION" and not _is_known_function(node):
            raise _refused(
                f"the function {node['function_name']} is not supported, or not with these arguments", text, records
            )
        if kind == "TYPE" and node["type_name"].lower() not in TYPES:
            raise _refused(f"the type {node['type_name']} is not supported", text, records)
        if kind == "COLUMN_REF":
            path = node["column_names"]
            is_qualified = path[0].lower() == "records" and len(path) > 1
            yield records.field(path[1 if is_qualified else 0]).name


def _is_known_function(node: Mapping[str, Any]) -> bool:
    """Return whether a call is on the list. A path into JSON must be constant: each path gives a copy."""
    name = node["function_name"].lower()
    is_plain = not any((node["schema"], node["catalog"], node["filter"], node["distinct"]))
    if name.startswith(("json", "->")) and any(a["expression"]["class"] != "CONSTANT" for a in node["arguments"][1:]):
        return False
    return is_plain and name in FUNCTIONS


def _nodes(value: Any) -> Iterator[tuple[Mapping[str, Any], int]]:
    """Yield all expressions inside an expression with their depth."""
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
