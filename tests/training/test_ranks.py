"""Several processes: one population, rows dealt out evenly, gradients of a single process, no deadlock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from qtune_service.training.distributed import partition_balanced
from tests.training.models import padded, ragged, tiny_llama
from tests.training.rank_work import one_step
from tests.training.ranks import run_on_ranks

CASES: list[tuple[str, list[int], dict[str, Any]]] = [
    ("ddp", [12, 12], {}),
    ("fsdp", [12, 12], {}),
    ("ddp", [5, 17, 8], {}),
    ("ddp", [5, 17, 8], {"balance": False}),
    ("ddp", [3, 3, 3], {"sample_keep_ratio": 0.01}),
    ("ddp", [3, 3, 3], {"sample_keep_ratio": 0.01, "balance": False}),
    ("fsdp", [4, 9, 2], {}),
    ("ddp", [12, 12], {"token_strategy": "random"}),
    ("fsdp", [9, 15], {"warmup_steps": 2}),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """Return the results of each rank, by case. Processes are started once for two ranks, and once for three."""
    found: dict[int, list[Any]] = {}
    for num_ranks in (2, 3):
        places = [place for place, case in enumerate(CASES) if len(case[1]) == num_ranks]
        calls: list[tuple[str, Any]] = [("data_parallel", CASES[place]) for place in places]
        if num_ranks == 2:
            calls.append(("vocab_parallel", (3,)))
        of_ranks = run_on_ranks(calls, num_ranks, tmp_path_factory.mktemp("ranks"))
        found |= dict(zip([*places, -1], map(list, zip(*of_ranks, strict=True)), strict=False))
    return found


@pytest.mark.parametrize("place", range(len(CASES)), ids=[f"{kind} {sizes} {o}" for kind, sizes, o in CASES])
def test_gradients_are_those_of_one_process(place: int, results: dict[int, list[Any]]) -> None:
    """Thresholds, counts and gradients equal one process that has the whole batch, though ranks keep different rows."""
    _, sizes, options = CASES[place]
    step, expected = one_step(tiny_llama(), [padded(ragged(sum(sizes), seed=21))], **options)
    for rank in results[place]:
        assert rank["counts"] == step.record.counts
        assert rank["num_tokens"] == step.num_tokens
        for found, gradient in zip(rank["gradients"], expected, strict=True):
            torch.testing.assert_close(found, gradient, rtol=1e-4, atol=1e-6)
    first, *others = (rank["lines"] for rank in results[place])
    assert first[-1].startswith("[Q-Tuning] ")
    assert not any(others)  # the first rank alone logs
    rows = [rank["rows"] for rank in results[place]]
    assert sum(rows) == step.record.kept
    if options.get("balance", True):
        assert max(rows) - min(rows) <= 1


def test_scores_of_a_vocabulary_on_two_ranks_are_exact(results: dict[int, list[Any]]) -> None:
    """NLL and entropy from halves of the logits equal those of a float64 softmax over all of them."""
    for rank in results[-1]:
        log_p = torch.log_softmax(torch.from_numpy(rank["logits"]).double(), -1)
        nll = -log_p.gather(-1, torch.from_numpy(rank["labels"])[:, None])[:, 0]
        expected = torch.stack((nll, -(log_p.exp() * log_p).sum(-1)), -1).numpy()
        assert np.abs(rank["plain"] - expected).max() < 2e-5
        assert np.abs(rank["dtensor"] - expected).max() < 2e-5


def test_rows_are_dealt_out_evenly() -> None:
    """Numbers differ by one at most, tokens by the longest row at most, and every row is dealt once."""
    lengths = np.random.default_rng(0).integers(1, 500, 101)
    hands = partition_balanced(lengths, 4)
    assert sorted(np.concatenate(hands).tolist()) == list(range(101))
    assert max(map(len, hands)) - min(map(len, hands)) == 1
    tokens = [int(lengths[hand].sum()) for hand in hands]
    assert max(tokens) - min(tokens) <= int(lengths.max())
