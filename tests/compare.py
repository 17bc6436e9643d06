"""Compare the outputs of two jobs that ought to be the same, and one output with its own manifest.

Rows are matched by sample_id, since a job's parts may be read in any order. Scores may differ by a tolerance; ids,
tokens, masks, labels, reasons and the user's own columns may not differ at all.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tests.jobs import manifest, rows

SCORES = ("nll", "entropy", "mean_nll", "mean_entropy")
RANKS = ("error_rank", "entropy_rank")
DERIVED = ("perplexity",)  # exp(mean_nll): a score in other words
SHOWN = 3


def differences(
    expected: Path, found: Path, tolerance: float = 1e-6, ignored: frozenset[str] = frozenset()
) -> list[str]:
    """Return the differences of two finished outputs without `ignored` columns. Empty: they are the same."""
    told = [*_broken(found)]
    for folder in ("scores", "quadrants", "pruned", "rejected"):
        told += _folder_differences(folder, rows(expected / folder), rows(found / folder), tolerance, ignored)
    here, there = manifest(found), manifest(expected)
    told += [f"manifest: {k} differ" for k in ("counts", "tokens", "rejected_reasons") if here[k] != there[k]]
    return told


def max_score_difference(expected: Path, found: Path) -> float:
    """Return the largest difference of a token's NLL or entropy, in nats."""
    left, right = (_by_id(rows(p / "scores")) for p in (expected, found))
    shared = sorted(set(left) & set(right))
    return max((_distance(left[i][name], right[i][name]) for i in shared for name in ("nll", "entropy")), default=0.0)


def _broken(out: Path) -> Iterator[str]:
    """Yield each point where an output contradicts its own manifest, or holds a file that it should not."""
    body = manifest(out)
    counts = body["counts"]
    if counts["kept"] + counts["pruned"] + counts["rejected"] != counts["read"]:
        yield f"kept + pruned + rejected is not read: {counts}"
    listed = {file["path"]: file for file in body["files"]}
    there = {str(path.relative_to(out)) for path in out.rglob("*.parquet")}
    for name in sorted(set(listed) ^ there):
        yield f"{name}: {'listed, but missing' if name in listed else 'not listed'}"
    for name in sorted(set(listed) & there):
        if hashlib.sha256((out / name).read_bytes()).hexdigest() != listed[name]["sha256"]:
            yield f"{name}: not the bytes that the manifest lists"


def _folder_differences(
    folder: str,
    expected: list[dict[str, Any]],
    found: list[dict[str, Any]],
    tolerance: float,
    ignored: frozenset[str],
) -> Iterator[str]:
    for side, records in (("expected", expected), ("found", found)):
        if repeated := [i for i, n in Counter(map(_identity, records)).items() if n > 1]:
            yield f"{folder}: {len(repeated)} ids repeat in the {side} output, {repeated[:SHOWN]}"
    left, right = _by_id(expected), _by_id(found)
    for what, ids in (("lost", set(left) - set(right)), ("added", set(right) - set(left))):
        if ids:
            yield f"{folder}: {len(ids)} rows {what}, {sorted(ids)[:SHOWN]}"
    for sample_id in sorted(set(left) & set(right)):
        if wrong := _row_differences(left[sample_id], right[sample_id], tolerance, ignored):
            yield f"{folder}: {sample_id} differs in {', '.join(wrong)}"


def _row_differences(
    left: Mapping[str, Any], right: Mapping[str, Any], tolerance: float, ignored: frozenset[str]
) -> list[str]:
    wrong = [name for name in left if name in SCORES and _distance(left[name], right.get(name)) > tolerance]
    wrong += [name for name in left if name in RANKS and _distance(left[name], right.get(name)) > tolerance]
    loose = {*SCORES, *RANKS, *DERIVED, *ignored, "qtune"}
    wrong += [name for name in {**left, **right} if name not in loose and left.get(name) != right.get(name)]
    if "qtune" in left:
        exact = ("sample_id", "quadrant", "tokens_kept", "tokens_removed")
        wrong += [f"qtune.{name}" for name in exact if left["qtune"][name] != right["qtune"][name]]
    return wrong


def _distance(left: Any, right: Any) -> float:
    """Return the largest difference between numbers or lists of them; infinite where their shapes differ."""
    a, b = np.atleast_1d(np.asarray(left, np.float64)), np.atleast_1d(np.asarray(right, np.float64))
    if a.shape != b.shape or not np.isfinite(a - b).all():
        return float("inf")
    return float(np.abs(a - b).max(initial=0.0))


def _identity(row: Mapping[str, Any]) -> str:
    return str(row["sample_id"] if "sample_id" in row else row["qtune"]["sample_id"])


def _by_id(records: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {_identity(row): row for row in records}
