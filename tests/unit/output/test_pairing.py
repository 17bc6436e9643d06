"""output/compare.py: the same samples in two outputs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from qtune_service.config import PruneSpec
from qtune_service.errors import OutputConflictError
from qtune_service.output.pairing import pair
from qtune_service.output.reader import FinishedOutput
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


def test_samples_are_paired_by_content_and_then_by_line(tmp_path: Path) -> None:
    """Another file with the same texts in another order, a repeated one, a new one, and an edited line."""
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    records = chats(9)
    a = finished_output(tmp_path / "a", [*records, records[0]], prune_by={})
    b = finished_output(tmp_path / "b", [chats(12)[11], *records[::-1], records[0]], prune_by={})
    paired = pair(a, b)
    assert paired.num_by == {"content": 10, "line": 0}
    assert paired.rows.tolist() == [list(range(10)), [9, 8, 7, 6, 5, 4, 3, 2, 1, 10]]
    assert paired.rank_correlations()[0] is not None
    edited = [*records[:4], chats(12)[10], *records[5:]]
    first = finished_output(tmp_path / "c", edited, prune_by={}, more=[])
    (tmp_path / "c" / "out").rename(tmp_path / "c" / "before")
    first = FinishedOutput(str(tmp_path / "c" / "before"))
    shutil.rmtree(tmp_path / "c" / "scored")
    second = finished_output(tmp_path / "c", [*records, records[8]], prune_by={})
    paired = pair(first, second)
    assert paired.num_by == {"content": 8, "line": 1}
    assert paired.rows.tolist() == [list(range(9))] * 2


def test_outputs_of_other_texts_in_other_files_have_nothing_in_common(tmp_path: Path) -> None:
    """Equal lines of another file are other samples."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    a = finished_output(tmp_path / "a", chats(9), prune_by={})
    b = finished_output(tmp_path / "b", chats(18)[9:], prune_by={})
    assert pair(a, b).rows.shape == (2, 0)
    assert pair(a, b).rank_correlations() == (None, None)


def test_how_far_samples_moved_is_their_distance_on_the_plane(outputs: FinishedOutputs, tmp_path: Path) -> None:
    """Another ratio of the same scores moves none. Scores in reverse order move those at the ends most."""
    same = prune(outputs.scored, tmp_path / "same", PruneSpec(sample_keep_ratio=0.7))
    paired = pair(outputs.pruned, same)
    assert list(paired.rank_correlations()) == pytest.approx([1, 1])
    assert len(paired.farthest(5)) == 0
    reversed_b = replace(paired.b, ranks=1 - paired.b.ranks)
    far = replace(paired, b=reversed_b)
    assert list(far.rank_correlations()) == pytest.approx([-1, -1])
    steps = np.hypot(*(reversed_b.ranks - paired.a.ranks))
    assert far.farthest(3).tolist() == np.argsort(-steps, kind="stable")[:3].tolist()


def test_what_is_only_scored_is_not_paired(outputs: FinishedOutputs) -> None:
    """It has no quadrants."""
    with pytest.raises(OutputConflictError, match="holds scores only"):
        pair(outputs.pruned, outputs.scored)
