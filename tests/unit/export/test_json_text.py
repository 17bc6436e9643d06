"""JSON lines: the user's own columns as they were, token lists, and values that JSON lacks."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from qtune_service.export.run import export
from qtune_service.export.writers import Options, array, encode, rows_of
from qtune_service.ingest.schema import json_field
from tests.jobs import rows


def test_jsonl_holds_every_column_a_row_a_line(out: Path, tmp_path: Path) -> None:
    """What pandas, datasets and a plain parser read is pruned/."""
    from datasets import load_dataset

    export(str(out), "jsonl", str(tmp_path), Options())
    files = sorted(tmp_path.glob("*.jsonl"))
    found = [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]
    assert found == rows(out / "pruned")
    assert list(found[0]) == list(rows(out / "pruned")[0])
    names = [str(file) for file in files]
    assert load_dataset("json", data_files=names, split="train", cache_dir=str(tmp_path / "c")).to_list() == found


def test_json_text_in_columns_becomes_values_again() -> None:
    """Fields that the schema holds as JSON text are objects in JSON lines, as they were in the input."""
    schema = pa.schema([json_field("args"), pa.field("tokens", pa.list_(pa.int32()))])
    table = pa.table([['{"a":[1,{"b":null}]}', "3"], [[1, 2], []]], schema=schema)
    assert [json.loads(encode(row)) for row in rows_of(table)] == [
        {"args": {"a": [1, {"b": None}]}, "tokens": [1, 2]},
        {"args": 3, "tokens": []},
    ]


def test_lists_with_gaps_are_lists_with_nulls() -> None:
    """A user's own list of numbers may lack some, or be missing."""
    table = pa.table({"n": pa.array([[1, None], None, [3]], pa.list_(pa.int64())), "b": [[True], [False], []]})
    assert [json.loads(encode(row)) for row in rows_of(table)] == [
        {"n": [1, None], "b": [True]},
        {"n": None, "b": [False]},
        {"n": [3], "b": []},
    ]


def test_slices_keep_their_rows() -> None:
    """Tables cut out of larger ones share their buffers."""
    table = pa.table({"n": [[1], [2, 3], [], [4]]})
    assert [encode(row) for row in rows_of(table.slice(1, 2))] == [b'{"n":[2,3]}', b'{"n":[]}']


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (float("nan"), "null"),
        ([float("inf"), -1.5], "[null,-1.5]"),
        (np.array([np.nan, np.inf, 2.0]), "[null,null,2.0]"),
        (b"\x00\xff", '"AP8="'),
        (Decimal("1.50"), '"1.50"'),
        (dt.date(2026, 1, 31), '"2026-01-31"'),
        (2**70, "1180591620717411303424"),
        ({"big": 2**70, "nan": float("nan"), "n": np.arange(2), "d": dt.date(2026, 1, 31)},
         '{"big":1180591620717411303424,"nan":null,"n":[0,1],"d":"2026-01-31"}'),
        ("\ud83d", '"\\ud83d"'),
        ("日本 \u2028", '"日本 \u2028"'),
    ],
)  # fmt: skip
def test_what_json_lacks_has_a_place_all_the_same(value: object, text: str) -> None:
    """Not a number is null, bytes are base64, large integers stay exact, half a surrogate pair is an escape."""
    assert encode(value).decode() == text
    json.loads(encode(value))


@pytest.mark.parametrize("size", [0, 1, 3])
def test_an_array_is_a_valid_document_of_any_length(size: int) -> None:
    """An element a line."""
    values = [{"i": i} for i in range(size)]
    body = b"".join(array(iter(values)))
    assert json.loads(body) == values
    assert len(body.splitlines()) == (size + 2 if size else 1)
