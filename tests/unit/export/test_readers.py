"""pruned/ as it is: the libraries that people have read the same rows from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.jobs import rows


@pytest.fixture
def expected(out: Path) -> list[dict[str, Any]]:
    """Rows by pyarrow."""
    return rows(out / "pruned")


def test_datasets(out: Path, expected: list[dict[str, Any]], tmp_path: Path) -> None:
    """`load_dataset("parquet", ...)`."""
    from datasets import load_dataset

    files = f"{out}/pruned/*.parquet"
    assert load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path)).to_list() == expected


def test_pandas(out: Path, expected: list[dict[str, Any]]) -> None:
    """`read_parquet` of the folder; lists come as numpy arrays."""
    import pandas as pd

    frame = pd.read_parquet(out / "pruned")
    assert [ids.tolist() for ids in frame["labels"]] == [row["labels"] for row in expected]
    assert [about["quadrant"] for about in frame["qtune"]] == [row["qtune"]["quadrant"] for row in expected]
    assert frame["topic"].tolist() == [row["topic"] for row in expected]


def test_polars(out: Path, expected: list[dict[str, Any]]) -> None:
    """`read_parquet` of a glob."""
    import polars as pl

    assert pl.read_parquet(f"{out}/pruned/*.parquet").to_dicts() == expected


def test_duckdb(out: Path, expected: list[dict[str, Any]]) -> None:
    """SQL over the files, down into structs and lists."""
    import duckdb

    found = duckdb.sql(
        "select id, qtune.quadrant, list_sum(loss_mask), to_json(messages) from read_parquet("
        f"'{out}/pruned/*.parquet', filename=false) order by id"
    ).fetchall()
    assert [(i, q, n, json.loads(m)) for i, q, n, m in found] == [
        (row["id"], row["qtune"]["quadrant"], row["qtune"]["tokens_kept"], row["messages"])
        for row in sorted(expected, key=lambda row: str(row["id"]))
    ]
