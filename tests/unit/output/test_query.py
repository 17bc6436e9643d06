"""Questions to a finished output: the answers are those of a plain look through all rows, whatever is asked."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from qtune_service.errors import QueryError
from qtune_service.output.query import (
    Limits,
    Records,
    Selection,
    find,
    find_sample,
    group_by,
    index_of,
    read_rows,
    read_tokens,
    rejected_of,
    samples_of,
    search,
)
from qtune_service.output.query import search as tokens_module
from qtune_service.output.query.conditions import Sandbox
from qtune_service.output.query.fields import parts, read_rows_of
from qtune_service.output.query.search import Filtered
from qtune_service.output.reader import FinishedOutput, read_samples
from qtune_service.selection.distributions import EvenSample
from qtune_service.selection.examples import borderline_samples, typical_samples
from qtune_service.selection.plane import Quadrant
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs
from tests.jobs import rows
from tests.s3 import S3Endpoint

Row = dict[str, Any]


@pytest.fixture(scope="module")
def records(outputs: FinishedOutputs) -> Records:
    """Return the samples of the pruned output."""
    return samples_of(outputs.pruned)


@pytest.fixture(scope="module")
def table(outputs: FinishedOutputs) -> list[Row]:
    """Return the same samples as plain rows, in order."""
    root = Path(outputs.pruned.root)
    both = zip(rows(root / "scores"), rows(root / "quadrants"), strict=True)
    alpha = outputs.pruned.manifest["thresholds"]["alpha"]
    return [{**scores, **quadrants, "index": i, "alpha": alpha} for i, (scores, quadrants) in enumerate(both)]


CONDITIONS: dict[str, Callable[[Row], bool]] = {
    "perplexity > 2": lambda r: r["perplexity"] > 2,
    "category = 'creature' and num_tokens < 8": lambda r: r["category"] == "creature" and r["num_tokens"] < 8,
    "entropy > 1 OR length >= 10 -- mean_entropy, num_tokens": lambda r: r["mean_entropy"] > 1 or r["num_tokens"] >= 10,
    "original_Entropy IN (2, 3)": lambda r: r["Entropy"] in (2, 3),
    "meta->>'a' = '17'": lambda r: r["meta"] == '{"a":17}',
    "len(messages) > 2": lambda r: len(r["messages"]) > 2,
    "messages[1].content LIKE 'W%?'": lambda r: (
        r["messages"][0]["content"].startswith("W") and r["messages"][0]["content"].endswith("?")
    ),
    "list_contains(truth, 'grey')": lambda r: "grey" in r["truth"],
    "records.PERPLEXITY BETWEEN 1.5 AND 2": lambda r: 1.5 <= r["perplexity"] <= 2,
    "CAST(line AS VARCHAR) LIKE '1%' AND NOT kept": lambda r: str(r["line"]).startswith("1") and not r["kept"],
    "borderline < 0.1": lambda r: abs(entry(r) - r["alpha"]) < 0.1,
    "line < 0": lambda _: False,
}


def entry(row: Row) -> float:
    """Return the alpha at which a sample is kept."""
    p, e = float(row["error_rank"]), float(row["entropy_rank"])
    return min(max(1 - p, e), max(p, 1 - e))


@pytest.mark.parametrize("where", CONDITIONS)
def test_conditions(where: str, records: Records, table: list[Row]) -> None:
    """A condition finds the rows that meet it, in order; own columns, nested ones and JSON text among them."""
    expected = [row["index"] for row in table if CONDITIONS[where](row)]
    found = find(records, Selection(where=where))
    assert found.index.tolist() == expected
    assert found.num_matching == len(expected)
    assert find(records, Selection(where=where, limit=2)).index.tolist() == expected[:2]


@pytest.mark.parametrize(
    ("sort", "column"), [("perplexity", "perplexity"), ("length", "num_tokens"), ("category", "category")]
)
@pytest.mark.parametrize("sign", ["", "-"])
def test_order_is_total(sign: str, sort: str, column: str, records: Records, table: list[Row]) -> None:
    """Equal keys go by place in the population, upwards and downwards; pages fit together."""
    ordered = sorted(table, key=lambda row: row[column], reverse=bool(sign))  # stable, also in reverse
    expected = [row["index"] for row in ordered]
    assert len({row[column] for row in table}) < len(table), "there are ties"
    assert find(records, Selection(sort=sign + sort)).index.tolist() == expected
    pages = [find(records, Selection(sort=sign + sort, limit=50, offset=start)).index for start in (0, 50, 100)]
    assert np.concatenate(pages).tolist() == expected


def test_what_has_no_key_comes_last(outputs: FinishedOutputs) -> None:
    """Nulls end the order, whichever way it goes."""
    records = rejected_of(outputs.pruned)
    for sort in ("category", "-category"):
        found = read_rows(records, find(records, Selection(sort=sort)).index, ["category", "line"])
        assert [row["category"] for row in found] == ["small_talk", None, None]
        assert found[1]["line"] < found[2]["line"]


def test_few_are_kept_on_the_way(records: Records, monkeypatch: pytest.MonkeyPatch) -> None:
    """Picking the best after each shard, as long ones do, changes nothing."""
    selection = Selection(where="num_tokens > 5", sort="-entropy", limit=4, offset=3)
    expected = find(records, selection)
    monkeypatch.setattr(search, "SPARE_ROWS", 0)
    found = find(records, selection)
    assert found.index.tolist() == expected.index.tolist()
    assert found.num_matching == expected.num_matching > 50


@pytest.mark.parametrize("quadrant", ["Q1", "Q2", "Q3", "Q4"])
def test_picks_of_the_report(quadrant: Any, records: Records, table: list[Row]) -> None:
    """`borderline` and `typical` are the report's own orders."""
    columns = {name: np.array([row[name] for row in table]) for name in ("mean_nll", "mean_entropy", "error_rank")}
    sample = EvenSample(
        index=np.arange(len(table)),
        **columns,
        entropy_rank=np.array([row["entropy_rank"] for row in table]),
        num_tokens=np.array([row["num_tokens"] for row in table], np.int32),
        quadrant=np.array([Quadrant[row["quadrant"]] for row in table], np.int8),
        kept=np.array([row["kept"] for row in table]),
        total=len(table),
    )
    label = Quadrant[quadrant]
    for sort, picks in (
        ("borderline", borderline_samples(sample, table[0]["alpha"], 10)),
        ("typical", typical_samples(sample, 10)),
    ):
        found = find(records, Selection(quadrant=quadrant, sort=sort, limit=10))
        assert found.index.tolist() == picks[label].tolist(), sort
        assert found.num_matching == np.count_nonzero(sample.quadrant == label)


def test_only_what_is_named_is_read(records: Records) -> None:
    """Of a shard only the columns of the question are read, and no token columns ever."""
    with Sandbox(Limits()) as sandbox:
        filtered = Filtered.of(records, Selection(where="entropy > 1", kept=True), ["borderline"], sandbox)
    part = next(parts(records, filtered.fields))
    assert set(part.column_names) == {"index", "mean_entropy", "kept", "error_rank", "entropy_rank"}
    assert not {"input_ids", "loss_mask", "nll"} & set(records.fields)


# --- refusals


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("1=1) union select 1 from (select 1", "must be one expression"),
        ("1=1) union select * from read_csv('/etc/passwd') --", "syntax error"),
        ("1=1); select (1", "must be one expression"),
        ("1=1) limit (1", "must be one expression"),
        ("1=1) group by (line", "must be one expression"),
        ("exists(from read_text('/etc/passwd'))", "a subquery"),
        ("line in (select line from records)", "a subquery"),
        ("read_csv('/etc/passwd')", "the function read_csv"),
        ("current_setting('memory_limit') = ''", "the function current_setting"),
        ("repeat(source, 1000000000) = ''", "the function repeat"),
        ("len(replace(replace(source, 'a', 'aaaa'), 'a', 'aaaa')) > 1", "the function replace"),
        ("source.repeat(1000000) = ''", "the function repeat"),
        ("len(range(line)) > 1", "the function range"),
        ("source || source = ''", r"the function \|\|"),
        ("main.lower(source) = ''", "the function lower"),
        ("sum(line) > 1", "the function sum"),
        ("row_number() over () = 1", "a window function"),
        ("len(list_transform(truth, lambda x: x)) > 1", "the function list_transform|a lambda"),
        ("COLUMNS(*) > 1", r"\* is not supported"),
        ("? = line", "a parameter"),
        ("#1 = line", "# is not supported"),
        ("CAST(CAST(line AS VARCHAR) AS INTEGER[100000]) IS NULL", "the type array"),
        ("NOT " * 3000 + "kept", "expression depth"),
        (" + ".join(["line"] * 60) + " > 1", "50 function calls"),
        ("line IN (" + ", ".join(["line"] * 300) + ")", "more than 200 parts"),
        ("meta->>['$', '$'] = []", "the function ->> is not supported, or not with these arguments"),
        ("line = 1" + " " * 20_000, "20,008 characters"),
        ("line >", "not valid SQL"),
        ("line = 1\x00) or (1=1", "not valid SQL"),
        ("line = 1 /*", "not valid SQL"),
        (" \n", "the condition is empty"),
        ("category > 5", "explicit cast"),
        ("error('x')", "the function error"),
    ],
)  # fmt: skip
def test_refused_conditions(where: str, message: str, records: Records) -> None:
    """What is not a plain condition is refused, however it is dressed, by an error that says why."""
    with pytest.raises(QueryError, match=message):
        find(records, Selection(where=where, limit=1))


def test_wrong_names_are_told(records: Records) -> None:
    """An unknown column gives the nearest name and the list of all; text in double quotes gets its hint."""
    with pytest.raises(QueryError, match=r"no column 'perplexty'; did you mean perplexity\?") as caught:
        find(records, Selection(where="perplexty > 1"))
    assert "entropy_rank" in caught.value.hint
    assert "planted" in caught.value.hint
    with pytest.raises(QueryError, match="no column 'creature'") as caught:
        find(records, Selection(where='category = "creature"'))
    assert "single quotes" in caught.value.hint
    with pytest.raises(QueryError, match="no column 'nll'"):
        find(records, Selection(sort="nll"))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM '/etc/passwd'",
        "COPY (SELECT 1) TO '/tmp/qtune-test.csv'",
        "ATTACH '/tmp/qtune-test.db'",
        "INSTALL httpfs",
        "LOAD '/tmp/x.duckdb_extension'",
        "SET enable_external_access = true",
        "SET memory_limit = '64GB'",
        "SET lock_configuration = false",
        "SELECT * FROM secret",
    ],
)
def test_the_sandbox_itself(sql: str) -> None:
    """Even a whole statement reaches no file, network, setting or Python variable."""
    secret = pa.table({"x": [1]})  # noqa: F841 - DuckDB would find it by its name
    with Sandbox(Limits()) as sandbox, pytest.raises(QueryError):
        sandbox.table(sql, {})


def test_a_question_may_take_so_long() -> None:
    """A query is interrupted at its time limit, and no other one begins after that."""
    numbers = pa.table({"x": np.arange(100_000)})
    started = time.monotonic()
    with Sandbox(Limits(seconds=0.3)) as sandbox:
        with pytest.raises(QueryError, match=r"took more than 0\.3 s"):
            sandbox.table("SELECT count(*) FROM n a, n b WHERE hash(a.x + b.x) = 1", {"n": numbers})
        with pytest.raises(QueryError, match="took more than"):
            sandbox.table("SELECT 1", {})
    assert time.monotonic() - started < 20


def test_a_question_may_take_so_much_memory() -> None:
    """Sorting more than the limit is an error that says so, since there is no disk to go to."""
    numbers = pa.table({"x": np.random.default_rng(0).random(4_000_000)})
    with Sandbox(Limits(memory_bytes=16 << 20)) as sandbox, pytest.raises(QueryError, match="more than 16 MiB"):
        sandbox.table("SELECT x FROM n ORDER BY x", {"n": numbers})


# --- rows, tokens, groups


def test_rows_come_as_asked(records: Records, table: list[Row]) -> None:
    """In the order of the request, across shards and more than once; JSON text is parsed, derived fields are there."""
    index = np.array([NUM_SAMPLES - 1, 0, 64, 0])
    found = read_rows(records, index, ["Line", "meta", "entropy", "original_Entropy", "typical"])
    assert [list(row) for row in found] == [["line", "meta", "entropy", "original_Entropy", "typical"]] * 4
    for row, i in zip(found, index.tolist(), strict=True):
        assert row["line"] == table[i]["line"]
        assert row["meta"] == ({"a": i} if i % 2 else "none")
        assert row["entropy"] == table[i]["mean_entropy"]
        assert row["original_Entropy"] == i % 7
        assert row["typical"] > 0
    assert read_rows(records, np.empty(0, np.int64), ["line"]) == []


def test_tokens_are_those_of_the_product(outputs: FinishedOutputs, records: Records) -> None:
    """Final masks equal pruned/ for kept samples; of dropped ones nothing is trained on."""
    index = np.arange(NUM_SAMPLES)[::-1]
    product = {row["qtune"]["sample_id"]: row for row in rows(Path(outputs.pruned.root) / "pruned")}
    ids = [row["sample_id"] for row in read_rows(records, index, ["sample_id"])]
    removed = 0
    for sample_id, tokens in zip(ids, read_tokens(outputs.pruned, records, index), strict=True):
        final = product[sample_id]["loss_mask"] if sample_id in product else [0] * len(tokens.input_ids)
        assert tokens.final_mask.tolist() == final
        assert np.isnan(tokens.nll).tolist() == (tokens.loss_mask == 0).tolist()
        removed += tokens.num_removed if sample_id in product else 0
    counts = outputs.pruned.manifest["tokens"]
    assert removed == counts["before"] - counts["after"] > 0


def test_tokens_agree_with_whole_samples(outputs: FinishedOutputs, records: Records) -> None:
    """The same arrays as read_samples gives."""
    shard = list(outputs.pruned.shards)[1]
    start = outputs.pruned.starts[shard]
    wholes = read_samples(outputs.pruned, shard, [3, 1])
    for whole, tokens in zip(wholes, read_tokens(outputs.pruned, records, start + np.array([3, 1])), strict=True):
        for name in ("input_ids", "loss_mask", "nll", "entropy", "smoothed"):
            np.testing.assert_array_equal(getattr(tokens, name), getattr(whole.tokens, name))


def test_only_the_rows_that_are_shown_are_held(
    outputs: FinishedOutputs, records: Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Token columns are read of the shards that hold the samples, and of these in batches."""
    read: list[tuple[str, int]] = []

    def noted(output: FinishedOutput, folder: str, shard: int, *more: Any) -> pa.Table:
        read.append((folder, shard))
        return read_rows_of(output, folder, shard, *more)

    monkeypatch.setattr(tokens_module, "read_rows_of", noted)
    read_tokens(outputs.pruned, records, np.array([0, 2, NUM_SAMPLES - 1]))
    assert read == [("scores", 0), ("scores", 4)]


def test_groups(records: Records, table: list[Row]) -> None:
    """Counts and means of each value, largest first, under a condition."""
    groups = group_by(records, "category", Selection(where="num_tokens > 5"))
    chosen = [row for row in table if row["num_tokens"] > 5]
    assert sum(group.num_samples for group in groups) == len(chosen)
    assert [-group.num_samples for group in groups] == sorted(-group.num_samples for group in groups)
    for group in groups:
        members = [row for row in chosen if row["category"] == group.value]
        assert group.num_samples == len(members)
        assert group.kept == sum(row["kept"] for row in members)
        assert group.quadrants == {q: sum(row["quadrant"] == q for row in members) for q in ("Q1", "Q2", "Q3", "Q4")}
        assert group.num_tokens == sum(row["num_tokens"] for row in members)
        assert group.perplexity == pytest.approx(math.exp(np.mean([row["mean_nll"] for row in members])))
        assert group.entropy == pytest.approx(np.mean([row["mean_entropy"] for row in members]))
    assert group_by(records, "category", Selection(where="num_tokens > 5", limit=2, offset=1)) == groups[1:3]


# --- other outputs


def test_an_output_that_was_only_scored(outputs: FinishedOutputs) -> None:
    """Scores, own columns and tokens are there; what needs quadrants says what to do."""
    records = samples_of(outputs.scored)
    found = find(records, Selection(where="perplexity > 2", sort="typical", limit=3))
    assert len(found.index) == 3
    tokens = read_tokens(outputs.scored, records, found.index)
    assert all(t.num_removed == 0 and np.isnan(t.smoothed).all() for t in tokens)
    (group, *_) = group_by(records, "category", Selection())
    assert (dict(group.quadrants), group.kept) == ({}, None)
    for selection in (Selection(quadrant="Q2"), Selection(kept=True), Selection(sort="borderline")):
        with pytest.raises(QueryError, match="holds scores only") as caught:
            find(records, selection)
        assert "--from-scores" in caught.value.hint


def test_rejected_records(outputs: FinishedOutputs) -> None:
    """They have fields and conditions of their own."""
    records = rejected_of(outputs.pruned)
    names = ["line", "reason", "category"]
    every = read_rows(records, find(records, Selection(sort="line")).index, names)
    assert [tuple(row.values()) for row in every] == [
        (NUM_SAMPLES + 1, "no_assistant_turn", "small_talk"),
        (NUM_SAMPLES + 2, "empty_response", None),
        (NUM_SAMPLES + 3, "bad_json", None),
    ]
    assert find(records, Selection(where="reason LIKE 'empty%'")).num_matching == 1
    with pytest.raises(QueryError, match="no column 'perplexity'"):
        find(records, Selection(where="perplexity > 1"))
    none = Records(records.finished, {}, ("rejected",), {})
    assert find(none, Selection(where="line = 1")).num_matching == 0


def test_samples_by_id(records: Records) -> None:
    """An id is found wherever it is; one that is not there brings the nearest, and says how ids look."""
    assert find_sample(records, "0000-00000001") == 0
    assert find_sample(records, f"0000-{NUM_SAMPLES:08}") == NUM_SAMPLES - 1
    assert index_of(records, "0000") is None
    with pytest.raises(QueryError, match="has no sample '0000-0000017'; the nearest are 0000-00000017") as caught:
        find_sample(records, "0000-0000017")
    assert "input file and the line" in caught.value.hint
    assert "id = '0000-0000017'" in caught.value.hint


def test_an_output_on_an_object_store(outputs: FinishedOutputs, table: list[Row], s3: S3Endpoint) -> None:
    """The same answers where the output is `s3://`."""
    root = Path(outputs.pruned.root)
    for path in sorted(root.rglob("*")):
        if path.is_file():
            s3.put(f"o/{path.relative_to(root)}", path.read_bytes())
    finished = FinishedOutput(s3.uri("o"))
    records = samples_of(finished)
    found = find(records, Selection(where="num_tokens > 6", sort="-perplexity", limit=3))
    ordered = sorted((r for r in table if r["num_tokens"] > 6), key=lambda r: -r["perplexity"])
    assert found.index.tolist() == [row["index"] for row in ordered[:3]]
    (first, *_) = read_tokens(finished, records, found.index)
    assert first.input_ids.tolist() == ordered[0]["input_ids"]
