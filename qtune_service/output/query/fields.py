"""The fields that queries can name: those of an output's samples, or of its rejected records.

Stored fields are columns of scores/, quadrants/ or rejected/. Derived fields are SQL over these. Token columns are not
fields. SQL ignores the case of names, so names are unique in lower case: a record's own column with a name in use is
called `original_NAME`. `parts` reads the fields of a query shard by shard, as Arrow tables.

`typical` is the distance of a sample from the middle of its quadrant, as in the report (selection/examples.py). The
middle is the median of (mean NLL, mean entropy), and distances are in units of the mean distance from it. Medians are
exact up to a million samples. Beyond, they are those of an even sample, which a hash of the index draws.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.errors import QueryError, StorageError
from qtune_service.output.layout import Output, damaged, part_files, rows_by_shard
from qtune_service.output.reader import FinishedOutput
from qtune_service.selection.hashing import split_mix
from qtune_service.selection.plane import entry_alpha_text

ENTRY_ALPHA = entry_alpha_text("error_rank", "entropy_rank", minimum="least", maximum="greatest")
"""SQL of the smallest alpha at which a sample is kept."""

ABOUT: Mapping[str, str] = {
    "index": "position among all samples, from 0",
    "sample_id": "input file and line",
    "source": "input file",
    "line": "line in the input file",
    "truncated": "cut to the length limit",
    "mean_nll": "nats a token",
    "perplexity": "exp of mean_nll",
    "mean_entropy": "nats a token",
    "num_tokens": "trained tokens",
    "quadrant": "Q1 to Q4",
    "kept": "in pruned/ or not",
    "error_rank": "mid-rank of mean_nll, 0 to 1",
    "entropy_rank": "mid-rank of mean_entropy, 0 to 1",
    "reason": "reason for the rejection",
    "detail": "the problem in detail",
    "category": "category of the record",
    "record": "beginning of the record",
}
STORED: Mapping[str, tuple[str, ...]] = {
    "scores": (
        "sample_id", "source", "line", "truncated", "mean_nll", "perplexity", "mean_entropy", "num_tokens",
    ),
    "quadrants": ("quadrant", "error_rank", "entropy_rank", "kept"),
    "rejected": ("sample_id", "source", "line", "reason", "detail", "category", "record"),
}  # fmt: skip
DERIVED_NAMES = ("index", "kept", "entropy", "length", "borderline", "typical")
CENTRED = ("mean_nll", "mean_entropy")
AHEAD = 4
"""Number of shards that are read ahead: an object store has a high latency and a high throughput."""
BATCH_ROWS = 1024
"""Number of rows decoded at a time when few are needed."""
SAMPLE_LIMIT = 1_000_000
Centre = tuple[float, float]
"""Median, and mean distance from it, 1 where all values are equal."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column that conditions can name."""

    name: str
    type: pa.DataType
    folder: str = ""
    """The folder that stores it, empty for a derived field."""
    column: str = ""
    """Its column there."""
    sql: str = ""
    """SQL of a derived field. That of `typical` depends on the data, see `derived_sql`."""
    needs: tuple[str, ...] = ()
    """The stored fields that it is derived from."""
    about: str = ""
    is_own: bool = False
    """Whether it is a column of the records themselves."""


@dataclass(frozen=True)
class Records:
    """The rows that a query goes over, shard by shard in order. Rows of all `folders` are aligned."""

    finished: FinishedOutput
    shards: Mapping[int, int]
    """Shard -> number of rows."""
    folders: tuple[str, ...]
    fields: Mapping[str, Field]
    found_sql: dict[str, str] = field(default_factory=dict, compare=False)
    """Cache of the SQL of derived fields that depends on the data."""

    @property
    def output(self) -> Output:
        """Return the paths of the output."""
        return self.finished.folder

    @cached_property
    def starts(self) -> Mapping[int, int]:
        """Return the index of the first row of each shard."""
        ends = np.cumsum(list(self.shards.values())).tolist()
        return {s: end - rows for (s, rows), end in zip(self.shards.items(), ends, strict=True)}

    @property
    def num_rows(self) -> int:
        """Return the number of records of all shards."""
        return sum(self.shards.values())

    def field(self, name: str) -> Field:
        """Return a field by its name in any case. Raise QueryError with the list of fields."""
        found = self._by_lower_name.get(name.lower())
        if found is None and self.folders == ("scores",) and name.lower() in (*STORED["quadrants"], "borderline"):
            raise QueryError(
                f"{self.output.root} holds scores only: its samples have no {name.lower()}",
                f"Prune it first, in seconds: qtune prune --from-scores {self.output.root} --output NEW",
            )
        if found is None:
            near = get_close_matches(name.lower(), self._by_lower_name, n=1)
            meant = f"; did you mean {self._by_lower_name[near[0]].name}?" if near else ""
            raise QueryError(f"there is no column {name!r}{meant}", self.hint())
        return found

    @cached_property
    def _by_lower_name(self) -> Mapping[str, Field]:
        return {name.lower(): field for name, field in self.fields.items()}

    def hint(self) -> str:
        """Return the hint of an error: the available columns."""
        ours = ", ".join(field.name for field in self.fields.values() if not field.is_own)
        own = ", ".join(field.name for field in self.fields.values() if field.is_own)
        return f"Columns: {ours}" + (f"\nOf the records: {own}" if own else "") + "\nPut text in single quotes: 'x'."

    def stored(self, names: Iterable[str]) -> list[Field]:
        """Return the stored fields behind some fields, each one time, in the order of `fields`."""
        wanted = {need for name in names for need in (self.fields[name].needs or (name,))}
        return [field for name, field in self.fields.items() if name in wanted and field.folder]


def samples_of(finished: FinishedOutput) -> Records:
    """Return the scored samples. Raise OutputConflictError for an output that is not complete."""
    folders = ("scores", "quadrants") if finished.spec.prune else ("scores",)
    shards = finished.shards
    stored = _stored_fields(finished, folders, next(iter(shards), None), finished.own_columns)
    alpha = finished.alpha if finished.spec.prune else None
    return Records(finished, shards, folders, _with_derived(stored, alpha))


def rejected_of(finished: FinishedOutput) -> Records:
    """Return the rejected records."""
    shards = rows_by_shard(part_files(finished.manifest, "rejected"))
    stored = _stored_fields(finished, ("rejected",), next(iter(shards), None), {})
    return Records(finished, shards, ("rejected",), {"index": _index(), **stored})


def _stored_fields(
    finished: FinishedOutput, folders: tuple[str, ...], shard: int | None, own: Mapping[str, str]
) -> dict[str, Field]:
    """Return fields by name: the job's first, then the records' own columns under names that are free."""
    if shard is None:
        return {}
    fields, schemas = {}, {folder: _schema(finished, folder, shard) for folder in folders}
    for folder, schema in schemas.items():
        for name in STORED[folder]:
            if name in schema.names:
                fields[name] = Field(name, schema.field(name).type, folder, name, about=ABOUT[name])
    taken = {name.lower() for name in (*fields, *DERIVED_NAMES)}
    for column in own:
        if column not in schemas["scores"].names:
            raise damaged(f"scores/ has no column {column[:200]!r}")
        name = column
        while name.lower() in taken:
            name = f"original_{name}"
        taken.add(name.lower())
        fields[name] = Field(name, schemas["scores"].field(column).type, "scores", column, is_own=True)
    return fields


def _schema(finished: FinishedOutput, folder: str, shard: int) -> pa.Schema:
    with finished.folder.open_part(finished.path(folder, shard)) as file:
        return file.schema_arrow


def _index() -> Field:
    return Field("index", pa.int64(), about=ABOUT["index"])


def _with_derived(stored: Mapping[str, Field], alpha: float | None) -> dict[str, Field]:
    """Add the derived fields of samples to stored ones. alpha: of the job, None for an output with scores only."""
    fields = {"index": _index(), **{name: field for name, field in stored.items() if not field.is_own}}
    number, ranks = pa.float64(), ("error_rank", "entropy_rank")
    if alpha is not None and "kept" not in stored:  # outputs of earlier versions
        sql = "quadrant IN ('Q2', 'Q4')"
        fields["kept"] = Field("kept", pa.bool_(), sql=sql, needs=("quadrant",), about=ABOUT["kept"])
    if not stored:
        return fields
    fields["entropy"] = Field("entropy", number, sql="mean_entropy", needs=("mean_entropy",), about="mean_entropy")
    fields["length"] = Field("length", pa.int32(), sql="num_tokens", needs=("num_tokens",), about="num_tokens")
    if alpha is not None:
        about = "smallest change of alpha that reverses the decision"
        sql = f"abs({ENTRY_ALPHA} - {double(alpha)})"
        fields["borderline"] = Field("borderline", number, sql=sql, needs=ranks, about=about)
    needs = (*CENTRED, "quadrant") if alpha is not None else CENTRED
    fields["typical"] = Field("typical", number, needs=needs, about="distance from the middle of its quadrant")
    return fields | {name: field for name, field in stored.items() if field.is_own}


def double(value: float) -> str:
    """Return a number as SQL, exactly: a plain literal would be a decimal."""
    return f"CAST('{value!r}' AS DOUBLE)"


def quoted(text: str, sign: str = "'") -> str:
    """Return a text as SQL. With double quotes as the sign, it is a name."""
    return f"{sign}{text.replace(sign, 2 * sign)}{sign}"


def parts(records: Records, names: Iterable[str]) -> Iterator[pa.Table]:
    """Yield all shards in order, with `index` and the stored fields behind `names`."""
    wanted = list(names)
    waiting: deque[Future[pa.Table]] = deque()
    with ThreadPoolExecutor(AHEAD) as pool:
        for shard in records.shards:
            waiting.append(pool.submit(read_part, records, shard, wanted))
            if len(waiting) > AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def read_part(records: Records, shard: int, names: Iterable[str], rows: NDArray[np.int64] | None = None) -> pa.Table:
    """Read a shard, or some of its rows (ascending)."""
    at = np.arange(records.shards[shard]) if rows is None else rows
    columns: dict[str, Any] = {"index": pa.array(records.starts[shard] + at, pa.int64())}
    schema = [pa.field("index", pa.int64())]
    stored = records.stored(names)
    for folder in records.folders:
        fields = [field for field in stored if field.folder == folder]
        if not fields:
            continue
        table = read_rows_of(records.finished, folder, shard, [field.column for field in fields], rows)
        if table.num_rows != len(at):
            raise StorageError(
                f"{folder} of shard {shard} in {records.output.root} has {table.num_rows:,} rows, "
                f"but {len(at):,} in the manifest",
                "The output is damaged. Run the job again.",
            )
        columns |= {field.name: table[field.column] for field in fields}
        schema += [table.schema.field(field.column).with_name(field.name) for field in fields]
    return pa.table(columns, schema=pa.schema(schema))


def empty_part(records: Records, names: Iterable[str]) -> pa.Table:
    """Return a table with the same columns and no rows."""
    stored: list[Field] = records.stored(names)
    return pa.schema([pa.field("index", pa.int64()), *(pa.field(f.name, f.type) for f in stored)]).empty_table()


def read_rows_of(
    finished: FinishedOutput, folder: str, shard: int, columns: Sequence[str], rows: NDArray[np.int64] | None = None
) -> pa.Table:
    """Read columns of a shard's file, or of some of its rows (ascending) without holding the others."""
    with finished.folder.open_part(finished.path(folder, shard)) as file:
        if rows is None:
            return file.read(columns=list(columns))
        taken, start = [file.schema_arrow.empty_table().select(list(columns))], 0
        for batch in file.iter_batches(BATCH_ROWS, columns=list(columns)):
            here = rows[(rows >= start) & (rows < start + batch.num_rows)] - start
            if len(here):
                taken.append(pa.Table.from_batches([batch.take(pa.array(here, pa.int64()))]).select(list(columns)))
            start += batch.num_rows
            if start > rows[-1]:
                break
        return pa.concat_tables(taken)


def derived_sql(records: Records, names: Iterable[str]) -> str:
    """Return the derived ones of some fields as further columns of a SELECT over the fields that they need."""
    derived = {name: records.fields[name].sql for name in names}
    if "typical" in derived:
        derived["typical"] = records.found_sql.get("typical") or _typical_sql(records)
        records.found_sql["typical"] = derived["typical"]
    return "".join(f', {sql} AS "{name}"' for name, sql in derived.items() if sql)


def _typical_sql(records: Records) -> str:
    """Return the distance from the middle of a sample's quadrant, or of all samples without quadrants."""
    by_quadrant = {name: _distance(columns) for name, columns in _columns(records).items()}
    if "quadrant" not in records.fields:
        return by_quadrant[""]
    cases = " ".join(f"WHEN '{name}' THEN {distance}" for name, distance in sorted(by_quadrant.items()))
    return f"CASE quadrant {cases} END"


def _distance(columns: NDArray[np.float64]) -> str:
    return " + ".join(
        f"abs({name} - {double(middle)}) / {double(spread)}"
        for name, (middle, spread) in zip(CENTRED, map(_centre, columns), strict=True)
    )


def _centre(values: NDArray[np.float64]) -> Centre:
    median = float(np.median(values))
    return median, float(np.abs(values - median).mean()) or 1.0


def _columns(records: Records) -> Mapping[str, NDArray[np.float64]]:
    """Return mean NLL and mean entropy of the samples of each quadrant, (2, n)."""
    has_quadrants = "quadrant" in records.fields
    quadrants, scores = [], []
    for taken, names in _picked(records):
        scores.append(taken)
        quadrants.append(names)
    joined, labels = np.concatenate(scores, axis=1), np.concatenate(quadrants)
    if not has_quadrants:
        return {"": joined}
    return {str(name): joined[:, labels == name] for name in np.unique(labels)}


def _picked(records: Records) -> Iterator[tuple[NDArray[np.float64], NDArray[np.str_]]]:
    """Yield an even sample of each shard: scores (2, n), quadrants (n,)."""
    stride = np.uint64(-(-records.num_rows // SAMPLE_LIMIT))
    for part in parts(records, ["typical"]):
        picked = split_mix(part["index"].to_numpy().astype(np.uint64)) % stride == 0
        scores = np.stack([part[name].to_numpy()[picked] for name in CENTRED])
        names = part["quadrant"].to_numpy() if "quadrant" in part.column_names else np.full(len(part), "")
        yield scores, names[picked].astype("U2")
