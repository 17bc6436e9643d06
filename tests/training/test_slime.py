"""slime's plug-in points, called as slime calls them, with data in the shape that it makes."""

from __future__ import annotations

import inspect
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qtune_service.errors import OutputConflictError, SpecError
from qtune_service.output.reader import FinishedOutput
from qtune_service.training import QTuningPruner
from qtune_service.training.slime import PrunedDataSource, generate_rollout, postprocess
from tests.jobs import rows
from tests.training.ranks import run_on_ranks
from tests.training.slime_rollouts import rollout, share, slime_args

STAND_INS = Path(__file__).parent / "stand_ins"


@pytest.fixture(autouse=True)
def _stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron and slime can be imported, in what the plug-in points use of them."""
    monkeypatch.syspath_prepend(str(STAND_INS))


def expected_masks(whole: dict[str, Any]) -> list[np.ndarray[Any, Any]]:
    """Return the pruner's masks of a rollout, row by row, in one process."""
    masks = [np.array([0, *mask.tolist()]) for mask in whole["loss_masks"]]
    nll, entropy = ([np.array([0, *(sign * row).tolist()]) for row in whole[name]] for name, sign in
                    (("log_probs", -1), ("entropy", 1)))  # fmt: skip
    return [mask[1:] for mask in QTuningPruner(0.5, 0.6, 0.5, None).prune_scores(nll, entropy, masks).loss_masks]


def test_masks_and_what_must_agree_with_them() -> None:
    """Dropped rows stay, all masked; denominators are the sums of what is left; types and the rest are as before."""
    whole, data = rollout(), rollout()
    postprocess(slime_args(), 3, data)
    expected = expected_masks(whole)
    dropped = [not mask.any() for mask in expected]
    assert 0 < sum(dropped) < 24
    for found, mask, before in zip(data["loss_masks"], expected, whole["loss_masks"], strict=True):
        assert found.tolist() == mask.tolist()
        assert found.dtype == before.dtype
    assert data["rollout_mask_sums"].tolist() == [float(mask.sum()) for mask in expected]
    assert data["rollout_mask_sums"].dtype == torch.float32
    for name in set(whole) - {"loss_masks", "rollout_mask_sums", "tokens", "log_probs", "entropy"}:
        assert data[name] == whole[name], name


def test_the_first_response_token_counts() -> None:
    """It is predicted by the prompt, so it is scored and may stay in the loss."""
    data = rollout()
    for mask in data["loss_masks"]:
        mask[:] = 0
        mask[0] = 1
    postprocess(slime_args(), 0, data)
    assert sum(int(mask.sum()) for mask in data["loss_masks"]) == 12


def test_samples_of_one_rollout_share_a_denominator() -> None:
    """It is the sum over all of them, those that were dropped with 0."""
    data = rollout(parts_a_rollout=3)
    postprocess(slime_args(), 0, data)
    sums: Counter[int] = Counter()
    for rollout_id, mask in zip(data["rollout_ids"], data["loss_masks"], strict=True):
        sums[rollout_id] += int(mask.sum())
    assert data["rollout_mask_sums"].tolist() == [float(sums[each]) for each in data["rollout_ids"]]


def test_older_versions_pass_arguments_alone() -> None:
    """Then the caller's `rollout_data` is pruned, which has no denominators yet; without one the error says so."""
    whole = rollout()

    def train_actor(rollout_id: int, rollout_data: dict[str, Any]) -> None:
        assert rollout_id == 5
        postprocess(slime_args())

    data = {name: value for name, value in rollout().items() if name != "rollout_mask_sums"}
    train_actor(5, data)
    for found, mask in zip(data["loss_masks"], expected_masks(whole), strict=True):
        assert found.tolist() == mask.tolist()
    assert tuple(inspect.signature(postprocess).parameters) == ("args", "rollout_id", "rollout_data")
    with pytest.raises(SpecError, match="does not pass the rollout"):
        postprocess(slime_args())


@pytest.mark.parametrize(
    ("missing", "changes", "flag"),
    [
        ("entropy", {}, "--use-rollout-entropy"),
        ("log_probs", {}, "--disable-compute-advantages-and-returns"),
        ("", {"rollout_temperature": 0.8}, "--rollout-temperature 1"),
        ("", {"rollout_top_p": 0.9}, "--rollout-top-p 1"),
    ],
)
def test_scores_are_never_made_up(missing: str, changes: dict[str, Any], flag: str) -> None:
    """Where they are missing, or are not the model's own, the error names the flag that helps."""
    data = {name: value for name, value in rollout().items() if name != missing}
    with pytest.raises(SpecError, match=flag):
        postprocess(slime_args(**changes), 0, data)


def test_only_the_last_stage_prunes_and_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other pipeline stages have no scores; and `enable_q_tuning=False` leaves everything as it is."""
    from megatron.core import mpu

    data = rollout()
    postprocess(slime_args(enable_q_tuning=False), 0, data)
    monkeypatch.setattr(mpu, "is_last_stage", False)
    del data["log_probs"], data["entropy"]
    postprocess(slime_args(), 0, data)
    assert all(map(torch.equal, data["loss_masks"], rollout()["loss_masks"]))


def test_the_first_rollouts_may_be_drawn(caplog: pytest.LogCaptureFixture) -> None:
    """In warm-up half of the rows stay, whole; its steps are rollouts."""
    whole, data = rollout(), rollout()
    with caplog.at_level(logging.INFO, "qtune_service.training"):
        postprocess(slime_args(q_tuning_warmup_steps=5), 3, data)
    assert caplog.messages == ["[Q-Tuning] Warm-up step 4 of 5: kept 12/24 samples at random"]
    left = [mask.tolist() for mask in data["loss_masks"] if mask.any()]
    assert len(left) == 12
    assert all(mask in [before.tolist() for before in whole["loss_masks"]] for mask in left)


def test_each_rollout_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """In the words that users know."""
    with caplog.at_level(logging.INFO, "qtune_service.training"):
        postprocess(slime_args(), 0, rollout())
    assert caplog.messages[1] == "[Q-Tuning] Kept 13/24 samples (54.2%)"


def test_ranks_prune_as_one(tmp_path: Path) -> None:
    """Two data-parallel ranks have the masks and denominators of one process, also of a rollout that both share; two
    context-parallel ones, which hold half of each row's scores, too."""
    first, second = run_on_ranks([("slime_data_parallel", (2,)), ("slime_context_parallel", ())], 2, tmp_path)
    whole = rollout(parts_a_rollout=2)
    postprocess(slime_args(), 0, whole)
    for rank, results in enumerate((first, second)):
        part = share(whole, list(range(rank, 24, 2)))
        assert results[0]["loss_masks"] == [mask.tolist() for mask in part["loss_masks"]]
        assert results[0]["rollout_mask_sums"] == part["rollout_mask_sums"].tolist()
        assert results[1]["loss_masks"] == [mask.tolist() for mask in whole["loss_masks"]]
        assert results[1]["rollout_mask_sums"] == whole["rollout_mask_sums"].tolist()


# --- the data source


def source(out: Path, **changes: Any) -> PrunedDataSource:
    return PrunedDataSource(slime_args(prompt_data=str(out), **changes))


def test_samples_are_the_rows_of_the_output(out: Path, finished: FinishedOutput) -> None:
    """All of them, in order, in groups of one: whole rows, and the mask of the response."""
    data = source(out)
    groups = data.get_samples(len(data))
    pruned = rows(out / "pruned")
    assert len(pruned) == len(data) == sum(finished.pruned_shards.values())
    for number, (group, row) in enumerate(zip(groups, pruned, strict=True)):
        (sample,) = group
        assert sample.tokens == row["input_ids"]
        assert len(sample.loss_mask) == sample.response_length
        assert sample.loss_mask == row["loss_mask"][-sample.response_length :]
        assert sum(sample.loss_mask) == sum(row["loss_mask"])
        assert (sample.index, sample.reward, sample.status.value) == (number, 0, "completed")


def tokens(groups: list[list[Any]]) -> list[tuple[int, ...]]:
    """Return the tokens of each sample, which identify it."""
    return [tuple(sample.tokens) for (sample,) in groups]


def test_each_epoch_has_every_row_in_an_order_of_its_own(out: Path) -> None:
    """Shuffled by seed and epoch; a draw may go over an epoch's end."""
    data = source(out, rollout_shuffle=True)
    drawn = tokens(data.get_samples(len(data) + 3) + data.get_samples(len(data) - 3))
    first, second = drawn[: len(data)], drawn[len(data) :]
    assert sorted(first) == sorted(second) == sorted(tokens(source(out).get_samples(len(data))))
    assert first != second
    assert first == tokens(source(out, rollout_shuffle=True).get_samples(len(data)))
    assert first != tokens(source(out, rollout_shuffle=True, rollout_seed=7).get_samples(len(data)))


def test_a_resumed_source_goes_on(out: Path, tmp_path: Path) -> None:
    """From the row after the last one that was drawn, in the same epoch; without a saved state from the first."""
    data = source(out, rollout_shuffle=True, save=str(tmp_path))
    data.get_samples(len(data) + 5)
    data.save(8)
    again = source(out, rollout_shuffle=True, load=str(tmp_path))
    again.load(8)
    expected, found = data.get_samples(9), again.get_samples(9)
    assert tokens(found) == tokens(expected)
    assert [sample.index for (sample,) in found] == [sample.index for (sample,) in expected]
    fresh = source(out, rollout_shuffle=True, load=str(tmp_path))
    fresh.load(-1)
    assert tokens(fresh.get_samples(5)) == tokens(source(out, rollout_shuffle=True).get_samples(5))


def test_other_data_do_not_go_on(out: Path, tmp_path: Path) -> None:
    """A place in one output says nothing about another."""
    data = source(out, save=str(tmp_path), load=str(tmp_path))
    data.save(0)
    path = tmp_path / "rollout" / "q_tuning_data_0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"data": "other"}))
    with pytest.raises(OutputConflictError, match="was saved with another output"):
        data.load(0)


def test_a_rollout_is_the_next_rows(out: Path) -> None:
    """As many as slime asks for, and nothing for evaluation; nothing may come back."""
    data = source(out)
    groups = generate_rollout(slime_args(), 0, data)
    assert tokens(groups) == tokens(source(out).get_samples(4))
    with pytest.raises(SpecError, match="evaluation is not possible"):
        generate_rollout(slime_args(), 0, data, evaluation=True)
    with pytest.raises(SpecError, match="read-only"):
        data.add_samples(groups)
    with pytest.raises(SpecError, match="n_samples_per_prompt"):
        source(out, n_samples_per_prompt=4)
    with pytest.raises(SpecError, match="no job output"):
        PrunedDataSource(slime_args(prompt_data=None))
