"""The pruner against the worked examples of the method, and its slow, independent reference."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qtune_service.training import QTuningPruner
from tests.jobs import REPO

SHARED = REPO.parent / "shared"
GOLDEN = sorted((SHARED / "golden").glob("plane_*.json"))
pytestmark = pytest.mark.skipif(not GOLDEN, reason="needs ../shared/golden, which comes with no checkout")


@pytest.fixture(scope="module")
def oracle() -> Any:
    """Load the reference from its file."""
    spec = importlib.util.spec_from_file_location("oracle", SHARED / "tools" / "oracle.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_quadrants_and_thresholds_are_the_worked_ones(path: Path) -> None:
    """Of samples of one token each, whose means are given; the bisection goes on until exact."""
    case = json.loads(path.read_text())
    pruner = QTuningPruner(case["sample_keep_ratio"], bisect_max_iter=None)
    choice = pruner.prune_scores(
        [[each] for each in case["mean_nll"]],
        [[each] for each in case["mean_entropy"]],
        [[0, 1]] * len(case["mean_nll"]),
    )
    assert [f"Q{label}" for label in choice.quadrants] == case["quadrant"]
    assert choice.record.kept == case["kept"]
    for name in ("alpha", "ppl_low", "ppl_high", "ent_low", "ent_high"):
        assert getattr(choice.thresholds, name) == pytest.approx(case[name], rel=1e-12), name


def test_whole_samples_are_pruned_as_by_the_reference(oracle: Any) -> None:
    """Quadrants and final masks of rows of several spans, token by token."""
    random = np.random.default_rng(5)
    masks = [np.append(0, random.random(int(n)) < 0.75).astype(int) for n in random.integers(5, 30, 80)]
    for mask in masks:
        mask[-1] = 1
    nll, entropy = ([random.gamma(2.0, scale, mask.sum()) for mask in masks] for scale in (1.5, 0.8))
    choice = QTuningPruner(0.4, 0.6, 0.3, None).prune_scores(nll, entropy, masks)
    plane = oracle.plane([row.mean() for row in nll], [row.mean() for row in entropy], 0.4)
    assert [f"Q{label}" for label in choice.quadrants] == plane["quadrant"]
    for label, mask, found, scores in zip(plane["quadrant"], masks, choice.loss_masks, nll, strict=True):
        expected = mask.copy()
        if label in ("Q1", "Q3"):
            expected[:] = 0
        if label == "Q2":
            spans = [len(span) for span in "".join(map(str, mask)).split("0") if span]
            ends = [k + 1 == span for span in spans for k in range(span)]
            expected[mask == 1] = oracle.token_keep(scores, spans, 0.6, 0.3, protected=ends)
        assert found.tolist() == expected.tolist()
