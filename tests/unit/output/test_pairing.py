"""output/compare.py: the same samples in two outputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from qtune_service.config import PruneSpec
from qtune_service.errors import OutputConflictError
from qtune_service.output.compare import pair
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs, chats, finished_output, prune


def test_another_ratio_of_the_same_scores(outputs: FinishedOutputs, tmp_path: Path) -> None:
    """All samples are common; what both say of each is counted as their files have it."""
    other = prune(outputs.scored, tmp_path / "other", PruneSpec(sample_keep_ratio=0.7))
    paired = pair(outputs.pruned, other)
    assert paired.rows.tolist() == [list(range(NUM_SAMPLES))] * 2
    a, b = (
        np.concatenate([finished.labels(shard)[0] for shard in finished.shards]) for finished in (outputs.pruned, other)
    )
    assert paired.moves.sum() == NUM_SAMPLES
    assert paired.moves[0, 1] == int(np.sum((a == 1) & (b == 2)))
    only_a, only_b = paired.kept_by_one()
    assert len(only_a) == paired.kept_table[1, 0] == 0
    assert len(only_b) == paired.kept_table[0, 1] > 0
    assert set(a[only_b]) <= {1, 3}
    assert set(b[only_b]) <= {2, 4}


def test_samples_are_found_wherever_their_file_stands(tmp_path: Path) -> None:
    """By file and line: a second job reads another file first, so that identifiers and order differ."""
    (tmp_path / "a").mkdir()
    first = finished_output(tmp_path / "a", chats(30), prune_by={"sample_keep_ratio": 0.5})
    data = tmp_path / "a" / "data.jsonl"
    (tmp_path / "b").mkdir()
    second = finished_output(tmp_path / "b", chats(9), prune_by={"sample_keep_ratio": 0.5}, more=[data])
    paired = pair(first, second)
    assert paired.rows.tolist() == [list(range(30)), list(range(9, 39))]


def test_outputs_of_other_files_have_nothing_in_common(tmp_path: Path) -> None:
    """Equal lines of another file are other samples."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a, b = (finished_output(tmp_path / name, chats(9), prune_by={}) for name in ("a", "b"))
    assert pair(a, b).rows.shape == (2, 0)


def test_what_is_only_scored_is_not_paired(outputs: FinishedOutputs) -> None:
    """It has no quadrants."""
    with pytest.raises(OutputConflictError, match="holds scores only"):
        pair(outputs.pruned, outputs.scored)
