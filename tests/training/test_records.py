"""What steps leave behind: JSON lines, TensorBoard, pictures."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtune_service.errors import DataError
from qtune_service.training import Choice, JsonlRecords, QTuningPruner, StepRecord, TensorBoardRecords
from qtune_service.training.plane_picture import ScoredPlane, plot_eu_plane


def two_steps(*records: Any, warmup_steps: int = 0) -> list[Choice]:
    """Choose twice among the same 40 samples, with other scores the second time."""
    pruner = QTuningPruner(0.5, bisect_max_iter=None, records=records, warmup_steps=warmup_steps)
    random = np.random.default_rng(3)
    masks = [[0] + [1] * length for length in random.integers(2, 30, 40)]  # the row's length tells it apart
    scores = [[[value] * (len(mask) - 1) for value, mask in zip(random.gamma(2, 1, 40), masks, strict=True)]
              for _ in range(4)]  # fmt: skip
    return [pruner.prune_scores(scores[0], scores[1], masks), pruner.prune_scores(scores[2], scores[3], masks)]


def test_records_are_lines_of_json(tmp_path: Path) -> None:
    """One a step, appended, with plain numbers: infinite thresholds are null."""
    path = tmp_path / "logs" / "steps.jsonl"
    first, second = two_steps(JsonlRecords(path))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [first.record.to_json(), second.record.to_json()]
    assert [line["step"] for line in lines] == [0, 1]
    assert lines[1]["drift"]
    assert sum(lines[1]["drift"].values()) == 40
    edge = replace(first.record, thresholds=replace(first.thresholds, ent_high=float("inf")))
    JsonlRecords(path)(edge)
    assert json.loads(path.read_text().splitlines()[2])["thresholds"]["ent_high"] is None


def test_a_step_of_warm_up_is_strict_json(tmp_path: Path) -> None:
    """Without NaN or Infinity, which JSON does not have: there are no thresholds."""
    path = tmp_path / "steps.jsonl"
    two_steps(JsonlRecords(path), warmup_steps=2)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert [line["is_warmup"] for line in lines] == [True, True]
    names = ("alpha", "ppl_low", "ppl_high", "ent_low", "ent_high")
    assert [line["thresholds"] for line in lines] == [dict.fromkeys(names)] * 2


def test_a_step_of_warm_up_has_nothing_to_plot_of_quadrants() -> None:
    """Its scalars are finite, and those of quadrants and thresholds are left out rather than 0."""
    first, second = two_steps(warmup_steps=1)
    assert set(first.record.scalars()) == {"kept_share", "token_share", "rejected", "seconds"}
    assert first.record.scalars()["kept_share"] == 0.5
    assert np.isfinite(list(second.record.scalars().values())).all()
    assert "quadrants/Q1" in second.record.scalars()


def test_tensorboard_reads_what_its_writer_was_told(tmp_path: Path) -> None:
    """Every finite number of every step, below q_tuning/."""
    pytest.importorskip("tensorboard", reason="needs tensorboard, one of the dev extras")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    told: list[StepRecord] = []
    with SummaryWriter(str(tmp_path)) as writer:
        two_steps(TensorBoardRecords(writer), told.append)
    events = EventAccumulator(str(tmp_path)).Reload()
    for record in told:
        for name, value in record.scalars().items():
            found = {event.step: event.value for event in events.Scalars(f"q_tuning/{name}")}
            assert found[record.step] == pytest.approx(value, rel=1e-6), name
    assert "q_tuning/drift/moved_share" in events.Tags()["scalars"]


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a PNG."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", head[16:])
    return width, height


def test_a_step_is_drawn_as_reports_draw_it(tmp_path: Path) -> None:
    """From a choice, or from scores of one's own: the same picture; other samples make another one."""
    first, second = two_steps()
    path = plot_eu_plane(first, tmp_path / "pictures" / "step.png")
    width, height = size_of(path)
    assert width > 1400
    assert height > 900
    own = ScoredPlane(first.mean_nll, first.mean_entropy, first.quadrants, first.is_kept, first.thresholds)
    assert plot_eu_plane(own, tmp_path / "own.png").read_bytes() == path.read_bytes()
    assert plot_eu_plane(second, tmp_path / "other.png").read_bytes() != path.read_bytes()


def test_nothing_to_draw_is_an_error(tmp_path: Path) -> None:
    """Where no sample has a quadrant."""
    first, _ = two_steps()
    empty = ScoredPlane(
        first.mean_nll, first.mean_entropy, np.zeros(40, np.int8), np.zeros(40, np.bool_), first.thresholds
    )
    with pytest.raises(DataError, match="no sample has a quadrant"):
        plot_eu_plane(empty, tmp_path / "none.png")
