"""DuckDB with nothing but the tables that it is given: no files, no network, no extensions, no settings to change.

conditions.py keeps out what this does not bound. The service evaluates conditions in child processes (questions/).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

import pyarrow as pa

from qtune_service.errors import QueryError

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
