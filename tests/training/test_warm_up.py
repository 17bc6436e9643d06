"""The pruner's first steps: random rows, without scores."""

from __future__ import annotations

import json
import logging
from typing import Any

import numpy as np
import pytest
import torch

from qtune_service.training import QTuningPruner
from qtune_service.training.token_scores import call_for_logits
from tests.jobs import DEMO_DATA, DEMO_MODEL
from tests.training.models import ragged, tiny_llama


def test_warm_up_keeps_random_rows_whole(model: Any) -> None:
    """As many as asked for, others each step, and then the method's own."""
    rows = ragged(40, seed=14)
    pruner = QTuningPruner(0.25, bisect_max_iter=None, warmup_steps=2)
    first, second, third = (pruner.prune(model, rows) for _ in range(3))
    assert [step.record.is_warmup for step in (first, second, third)] == [True, True, False]
    assert first.record.kept == second.record.kept == 10
    assert not np.array_equal(first.choice.is_kept, second.choice.is_kept)
    for kept, mask, before in zip(first.choice.is_kept, first.choice.loss_masks, rows["loss_mask"], strict=True):
        assert int(mask.sum()) == (sum(before[1:]) if kept else 0)


def test_warm_up_scores_nothing() -> None:
    """The model is not called until it is over; the same rows are kept whatever it is, and there are no quadrants."""
    rows, calls = ragged(20, seed=16), []

    def forward(model: Any, ids: torch.Tensor) -> torch.Tensor:
        calls.append(len(ids))
        return call_for_logits(model, ids)

    pruner = QTuningPruner(0.25, warmup_steps=1, forward=forward)
    choice = pruner.prune(tiny_llama(), rows).choice
    assert not calls
    assert not choice.quadrants.any()
    assert np.isnan(choice.mean_nll).all()
    assert np.isnan(choice.mean_entropy).all()
    assert choice.record.counts == {"Q1": 0, "Q2": 0, "Q3": 0, "Q4": 0}
    assert choice.record.drift == {}
    assert choice.kept.tolist() == [0, 1, 9, 11, 15]  # as when all of them were scored
    pruner.prune(tiny_llama(), rows)
    assert calls


def test_warm_up_loses_no_row(model: Any) -> None:
    """Rows without a trained token are counted and not drawn; a step of nothing else keeps nothing, and says so."""
    rows = ragged(10, seed=12)
    rows["loss_mask"][4] = [0] * len(rows["loss_mask"][4])
    pruner = QTuningPruner(1.0, warmup_steps=2)
    step = pruner.prune(model, rows)
    assert (step.record.num_samples, step.record.num_rejected, step.record.kept) == (9, 1, 9)
    assert not step.choice.is_kept[4]
    assert step.record.tokens_before == step.record.tokens_after == sum(sum(mask[1:]) for mask in rows["loss_mask"])
    rows["loss_mask"] = [[0] * len(mask) for mask in rows["loss_mask"]]
    empty = pruner.prune(model, rows).record
    assert (empty.num_samples, empty.num_rejected, empty.kept, empty.is_warmup) == (0, 10, 0, True)


def test_warm_up_with_scores_that_are_there_keeps_the_same_rows(model: Any) -> None:
    """`prune_scores` draws as `prune` does."""
    rows = ragged(20, seed=16)
    drawn = QTuningPruner(0.25, warmup_steps=1).prune(model, rows).choice
    scores = [[1.0] * sum(mask[1:]) for mask in rows["loss_mask"]]
    choice = QTuningPruner(0.25, warmup_steps=1).prune_scores(scores, scores, rows["loss_mask"])
    np.testing.assert_array_equal(choice.rows.loss_mask, drawn.rows.loss_mask)
    assert choice.record.is_warmup
    assert not choice.quadrants.any()


def test_a_step_of_warm_up_is_logged_as_one(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One line, without quadrants that were not found."""
    pruner = QTuningPruner(0.25, warmup_steps=2)
    with caplog.at_level(logging.INFO, "qtune_service.training"):
        for _ in range(3):
            pruner.prune(model, ragged(20, seed=16))
    assert caplog.messages[:2] == [
        "[Q-Tuning] Warm-up step 1 of 2: kept 5/20 samples at random",
        "[Q-Tuning] Warm-up step 2 of 2: kept 5/20 samples at random",
    ]
    assert caplog.messages[2].startswith("[Q-Tuning] Quadrant distribution: {'Q1': ")


@pytest.mark.parametrize("is_able", [False, True])
def test_a_model_that_knows_nothing_yet_is_told_once(is_able: bool, caplog: pytest.LogCaptureFixture) -> None:
    """By comparison with the tokens' frequencies: a random model is worse, the demo's is far better."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if is_able:
        model, tokenizer = (kind.from_pretrained(DEMO_MODEL) for kind in (AutoModelForCausalLM, AutoTokenizer))
        talks = [json.loads(line)["messages"] for line in DEMO_DATA.read_text("utf-8").splitlines()[:16]]
        made = tokenizer.apply_chat_template(talks, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
        batch = {"input_ids": made["input_ids"], "loss_mask": made["assistant_masks"]}
    else:
        model, batch = tiny_llama(), ragged(20, seed=15)
    pruner = QTuningPruner(warmup_steps=1)
    for _ in range(3):
        pruner.prune(model, batch)
    assert caplog.text.count("Set warmup_steps") == (0 if is_able else 1)
