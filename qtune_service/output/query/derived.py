"""Fields that are not stored: SQL over those that are.

`typical` is how far a sample is from the middle of its quadrant, as in the report (selection/examples.py). The middle is
the median of (mean NLL, mean entropy), distance is counted in units of the mean distance from it. Medians are exact up
to a million samples; beyond, they are those of an even sample, which a hash of the index draws.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.query.fields import CENTRED, Records, double
from qtune_service.output.query.parts import parts
from qtune_service.selection.hashing import split_mix

SAMPLE_LIMIT = 1_000_000

Centre = tuple[float, float]
"""Median, and mean distance from it; 0 where all are equal."""


def derived_sql(records: Records, names: Iterable[str]) -> str:
    """The derived ones of some fields, as more columns of a SELECT over the fields that they need."""
    derived = {name: records.fields[name].sql for name in names}
    if "typical" in derived:
        derived["typical"] = records.found_sql.get("typical") or _typical_sql(records)
        records.found_sql["typical"] = derived["typical"]
    return "".join(f', {sql} AS "{name}"' for name, sql in derived.items() if sql)


def _typical_sql(records: Records) -> str:
    """Distance from the middle of a sample's quadrant, or of all samples where there are no quadrants."""
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
    """Quadrant -> its samples' mean NLL and mean entropy, (2, n)."""
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
    """Of each shard, an even sample: scores (2, n), quadrants (n,)."""
    stride = np.uint64(-(-records.num_rows // SAMPLE_LIMIT))
    for part in parts(records, ["typical"]):
        picked = split_mix(part["index"].to_numpy().astype(np.uint64)) % stride == 0
        scores = np.stack([part[name].to_numpy()[picked] for name in CENTRED])
        names = part["quadrant"].to_numpy() if "quadrant" in part.column_names else np.full(len(part), "")
        yield scores, names[picked].astype("U2")
