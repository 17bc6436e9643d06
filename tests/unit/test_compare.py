"""The comparison of outputs, which fault tests and the chaos benchmark rest on, sees each kind of difference."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.compare import differences, max_score_difference

Tables = dict[str, list[dict[str, Any]]]


def tables() -> Tables:
    """Two scored samples, of which one is kept, and a rejected one."""
    scored = [
        {
            "sample_id": f"s{i}",
            "mean_nll": 1.0 + i,
            "mean_entropy": 0.5,
            "perplexity": 2.7,
            "input_ids": [1, 2, 3],
            "loss_mask": [0, 1, 1],
            "nll": [1.0, 1.0 + i],
            "entropy": [0.5, 0.5],
        }
        for i in range(2)
    ]
    kept = {"sample_id": "s1", "quadrant": "Q2", "tokens_kept": 1, "tokens_removed": 1, "perplexity": 2.7}
    return {
        "scores": scored,
        "quadrants": [
            {"sample_id": f"s{i}", "quadrant": f"Q{i + 1}", "error_rank": 0.25 + i / 2, "entropy_rank": 0.5}
            for i in range(2)
        ],
        "pruned": [{"input_ids": [1, 2, 3], "loss_mask": [0, 1, 0], "qtune": kept}],
        "rejected": [{"sample_id": "r0", "reason": "bad_json", "line": 7}],
    }


def write(out: Path, content: Tables) -> Path:
    """Write an output that is whole in itself."""
    files = []
    for folder, records in content.items():
        (out / folder).mkdir(parents=True)
        path = out / folder / "part-00000.parquet"
        pq.write_table(pa.Table.from_pylist(records), path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        files.append({"path": f"{folder}/part-00000.parquet", "sha256": digest})
    counts = {"read": 3, "scored": 2, "kept": 1, "pruned": 1, "rejected": 1}
    body = {"counts": counts, "tokens": {}, "rejected_reasons": {}, "files": files}
    (out / "manifest.json").write_text(json.dumps(body))
    return out


def test_equal_outputs_have_no_difference(tmp_path: Path) -> None:
    """Scores within the tolerance are the same; how far they are apart is told."""
    close = tables()
    close["scores"][0]["nll"][1] += 5e-7
    a, b = write(tmp_path / "a", tables()), write(tmp_path / "b", close)
    assert differences(a, b) == []
    assert max_score_difference(a, b) == pytest.approx(5e-7)


def _set(folder: str, row: int, name: str, value: Any) -> Callable[[Tables], None]:
    return lambda content: content[folder][row].update({name: value})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda content: content["scores"].pop(), "scores: 1 rows lost, ['s1']"),
        (lambda content: content["rejected"].append({"sample_id": "r1"}), "rejected: 1 rows added, ['r1']"),
        (lambda content: content["scores"].append(content["scores"][0]), "1 ids repeat in the found output, ['s0']"),
        (_set("scores", 0, "nll", [1.0, 1.0 + 2e-6]), "scores: s0 differs in nll"),
        (_set("scores", 0, "entropy", [0.5, float("nan")]), "scores: s0 differs in entropy"),
        (_set("scores", 1, "mean_nll", 2.1), "scores: s1 differs in mean_nll"),
        (_set("scores", 1, "input_ids", [1, 2, 4]), "scores: s1 differs in input_ids"),
        (_set("quadrants", 0, "quadrant", "Q3"), "quadrants: s0 differs in quadrant"),
        (_set("pruned", 0, "loss_mask", [0, 0, 1]), "pruned: s1 differs in loss_mask"),
        (_set("rejected", 0, "reason", "not_utf8"), "rejected: r0 differs in reason"),
    ],
)
def test_each_difference_is_told(change: Callable[[Tables], Any], told: str, tmp_path: Path) -> None:
    """Rows lost, added or doubled, and values that differ, are named."""
    other = tables()
    change(other)
    found = differences(write(tmp_path / "a", tables()), write(tmp_path / "b", other))
    assert any(told in text for text in found), found


def test_an_output_that_contradicts_its_manifest(tmp_path: Path) -> None:
    """A part that is missing, not listed, or other than listed is told."""
    good = write(tmp_path / "a", tables())
    for name, spoil, told in (
        ("gone", lambda out: (out / "pruned" / "part-00000.parquet").unlink(), "listed, but missing"),
        ("stray", lambda out: shutil.copy(part(out), part(out).with_name("part-9.parquet")), "not listed"),
        ("other", lambda out: pq.write_table(pq.read_table(part(out)), part(out), compression="gzip"), "not the bytes"),
    ):
        out = write(tmp_path / name, tables())
        spoil(out)
        assert any(told in text for text in differences(good, out)), name


def part(out: Path) -> Path:
    """Return a Parquet file of an output."""
    return out / "quadrants" / "part-00000.parquet"
