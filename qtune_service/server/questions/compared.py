"""What became of the samples that two outputs have in common, as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.output.pairing import Pairing, pair
from qtune_service.output.query import samples_of
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.token_view import shown_samples

QUADRANTS = ("Q1", "Q2", "Q3", "Q4")


def compare_outputs(a: FinishedOutput, b: FinishedOutput, num_examples: int) -> dict[str, Any] | None:
    """Return counts, moves between quadrants and some examples; None where no sample is in both.

    Raises DataError where they are too large, and OutputConflictError where one is only scored.
    """
    paired = pair(a, b)
    return _compared(paired, a, b, num_examples) if paired.rows.size else None


def _compared(paired: Pairing, a: FinishedOutput, b: FinishedOutput, num_examples: int) -> dict[str, Any]:
    common = paired.rows.shape[1]
    (neither, by_b), (by_a, by_both) = paired.fates.tolist()
    either = by_a + by_b + by_both
    only_a, only_b = paired.kept_by_one()
    return {
        "common": common,
        "only_in_a": len(paired.a.kept) - common,
        "only_in_b": len(paired.b.kept) - common,
        "kept_by_both": by_both,
        "kept_by_a": by_a,
        "kept_by_b": by_b,
        "kept_by_neither": neither,
        "overlap": by_both / either if either else None,
        "moves": {
            name: dict(zip(QUADRANTS, row, strict=True))
            for name, row in zip(QUADRANTS, paired.moves.tolist(), strict=True)
        },
        "examples_a": _examples(a, only_a, num_examples),
        "examples_b": _examples(b, only_b, num_examples),
    }


def _examples(finished: FinishedOutput, index: NDArray[np.int64], number: int) -> list[dict[str, Any]]:
    """Some samples, evenly from all."""
    number = min(number, len(index))
    picked = index[np.arange(number) * len(index) // max(number, 1)]
    return [sample.to_json() for sample in shown_samples(finished, samples_of(finished), picked)]
