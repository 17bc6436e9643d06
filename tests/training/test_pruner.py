"""The pruner in one process."""

from __future__ import annotations

import inspect
import itertools
import logging
from dataclasses import asdict, fields
from typing import Any

import numpy as np
import pytest
import torch

from qtune_service.config import PruneSpec
from qtune_service.errors import DataError, SpecError
from qtune_service.selection.thresholds import select
from qtune_service.selection.token_masks import protected_tokens, prune_token_masks
from qtune_service.training import QTuningArguments, QTuningPruner, StepRecord
from qtune_service.training.batch_layout import Rows, read_batch
from tests.training.models import VOCAB, exact_means, packed, padded, ragged, tiny_llama

SCORE_TOLERANCE = 2e-5


def kept_rows(step: Any) -> list[tuple[list[int], list[int]]]:
    """Tokens and masks of a ragged result, sorted."""
    batch = step.batch
    return sorted(zip(batch["input_ids"], [[int(x != -100) for x in row] for row in batch["labels"]], strict=True))


def test_scores_are_those_of_a_softmax_over_all_logits(model: Any) -> None:
    """Means equal a float64 softmax of each row alone, whatever rows it was scored with."""
    rows = ragged(40)
    choice = QTuningPruner().prune(model, rows).choice
    expected = exact_means(model.eval(), rows)
    model.train()
    assert np.abs(choice.mean_nll - expected[:, 0]).max() < SCORE_TOLERANCE
    assert np.abs(choice.mean_entropy - expected[:, 1]).max() < SCORE_TOLERANCE


def test_the_choice_is_that_of_a_job(model: Any) -> None:
    """Kept rows, quadrants and masks are what the core gives for these scores."""
    rows = ragged(60, seed=3)
    step = QTuningPruner(0.4, 0.6, 0.3, None).prune(model, rows)
    expected = select(step.choice.mean_nll, step.choice.mean_entropy, sample_keep_ratio=0.4)
    np.testing.assert_array_equal(step.choice.quadrants, expected.labels)
    np.testing.assert_array_equal(step.choice.is_kept, expected.is_kept)
    assert step.record.target == 24 <= step.record.kept <= 27
    for quadrant, mask, before in zip(step.choice.quadrants, step.choice.loss_masks, rows["loss_mask"], strict=True):
        trained = sum(before[1:])
        left = {1: 0, 3: 0, 4: trained, 2: int(np.ceil(round(0.6 * trained, 9)))}[int(quadrant)]
        assert int(mask.sum()) == left
    assert step.num_tokens == sum(int(mask.sum()) for mask in step.choice.loss_masks)


def test_labels_and_loss_mask_of_lists_must_both_train_a_token() -> None:
    """As in tensors: a token that either of them leaves out is not trained."""
    ids = [[5, 6, 7, 8]]
    rows, _ = read_batch({"input_ids": ids, "labels": [[-100, 6, 7, -100]], "loss_mask": [[0, 1, 0, 1]]})
    assert rows.loss_mask.tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
def test_all_layouts_prune_alike(model: Any, layout: str) -> None:
    """Padded on either side or packed: the same rows with the same masks as from lists."""
    rows = ragged(30, seed=5)
    expected = kept_rows(QTuningPruner().prune(model, rows))
    batch = packed(rows) if layout == "packed" else padded(rows, left=layout == "left")
    found = QTuningPruner().prune(model, batch).batch
    assert set(found) == set(batch)
    if layout == "packed":
        starts = (found["position_ids"][0] == 0).nonzero().flatten().tolist()
        bounds = [*starts, found["input_ids"].shape[1]]
        spans = [(0, slice(a, b)) for a, b in itertools.pairwise(bounds)]
    else:
        spans = [(i, slice(0, int(n))) for i, n in enumerate(found["attention_mask"].sum(1))]
    got = [(found["input_ids"][i, s].tolist(), (found["labels"][i, s] != -100).int().tolist()) for i, s in spans]
    assert sorted(got) == expected


@pytest.mark.parametrize("name", ["cu_seqlens", "cu_seq_lens_q"])
def test_cumulative_lengths_are_read_and_written(model: Any, name: str) -> None:
    """A packed batch told apart by them keeps its rows, and gets lengths and rows' numbers that fit."""
    rows = ragged(12, seed=6)
    ends = np.cumsum([0, *map(len, rows["input_ids"])])
    batch = {**packed(rows), name: torch.tensor(ends, dtype=torch.int32), "max_length_q": 24}
    batch["seq_idx"] = torch.repeat_interleave(torch.arange(12, dtype=torch.int32), torch.tensor(ends).diff())[None]
    found = QTuningPruner().prune(model, batch).batch
    lengths = np.diff(found[name].numpy())
    assert lengths.sum() == found["input_ids"].shape[1]
    assert found["max_length_q"] == lengths.max()
    assert found["seq_idx"].dtype == torch.int32
    assert torch.equal(found["seq_idx"][0].bincount(), torch.from_numpy(lengths))
    assert len(lengths) == QTuningPruner().prune(model, rows).record.kept


def test_lists_of_tensors_are_pruned_as_lists_are(model: Any) -> None:
    """And come back as tensors, with the keys that they had."""
    rows = ragged(12, seed=6)
    batch = {name: [torch.tensor(row) for row in values] for name, values in rows.items()}
    found, expected = (QTuningPruner().prune(model, each).batch for each in (batch, rows))
    assert set(found) == set(expected) == {"input_ids", "labels", "loss_mask"}
    for name, values in found.items():
        assert [row.tolist() for row in values] == expected[name]


def test_scoring_in_small_groups_and_blocks_changes_nothing(model: Any) -> None:
    """Group and block sizes are no part of the result."""
    rows = ragged(30, seed=7)
    whole = QTuningPruner().prune(model, rows).choice
    small = QTuningPruner(batch_tokens=30, logits_bytes=4 * 97 * 3).prune(model, rows).choice
    assert np.abs(whole.mean_nll - small.mean_nll).max() < SCORE_TOLERANCE
    np.testing.assert_array_equal(whole.quadrants, small.quadrants)


@pytest.mark.parametrize("kind", ["capped", "plain module"])
def test_models_that_change_their_logits_are_scored_by_these(kind: str) -> None:
    """A soft cap behind the head counts, and a module without a head needs only to return logits."""
    llama = tiny_llama(1)

    class Capped(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.llama = llama
            self.lm_head = llama.lm_head if kind == "capped" else torch.nn.Identity()

        def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
            return 2 * torch.tanh(self.llama(input_ids=input_ids).logits / 2)

    model = Capped()
    rows = ragged(10, seed=8)
    choice = QTuningPruner().prune(model, rows).choice
    oracle = type("Oracle", (), {"__call__": lambda _self, input_ids: _Output(model(input_ids))})()
    expected = exact_means(oracle, rows)
    assert np.abs(choice.mean_nll - expected[:, 0]).max() < SCORE_TOLERANCE
    assert np.abs(choice.mean_entropy - expected[:, 1]).max() < SCORE_TOLERANCE


class _Output:
    def __init__(self, logits: torch.Tensor) -> None:
        self.logits = logits


class CountingHead(torch.nn.Linear):  # type: ignore[misc]
    """A head that notes how many rows it is given."""

    sizes: list[int]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        self.sizes.append(hidden.shape.numel() // hidden.shape[-1])
        return super().forward(hidden)


def test_no_block_of_logits_is_larger_than_allowed() -> None:
    """The head is never asked for more float32 logits at a time than the limit, and for trained tokens only."""
    model = tiny_llama()
    model.lm_head = CountingHead(32, VOCAB, bias=False)
    model.lm_head.sizes = []
    pruner = QTuningPruner(logits_bytes=4 * VOCAB * 5)
    pruner.prune(model, ragged(8))  # the first use tries the head on a few tokens
    model.lm_head.sizes.clear()
    step = pruner.prune(model, ragged(20, seed=2))
    assert max(model.lm_head.sizes) == 5
    assert sum(model.lm_head.sizes) == step.record.tokens_before


def test_a_vocabulary_of_five_tokens_is_scored() -> None:
    """The first use asks for no token that the model does not have."""
    model = tiny_llama(vocab_size=5)
    rows = {"input_ids": [[1, 2, 3, 4], [4, 3, 2, 1], [1, 1, 2]], "loss_mask": [[0, 1, 1, 1], [0, 1, 1, 1], [0, 1, 1]]}
    assert QTuningPruner().prune(model, rows).record.num_samples == 3


def test_modes_random_numbers_and_gradients_are_as_before() -> None:
    """A frozen part stays in evaluation mode, dropout draws on, and no gradient appears; also after an error."""
    model = tiny_llama(attention_dropout=0.5).train()
    model.model.layers[0].eval()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    rows = ragged(10)
    first = QTuningPruner().prune(model, rows).choice
    with pytest.raises(IndexError):
        QTuningPruner().prune(model, {"input_ids": [[1, 1000, 2]], "loss_mask": [[0, 0, 1]]})
    assert torch.equal(torch.rand(3), expected)
    assert model.training
    assert not model.model.layers[0].training
    assert model.model.layers[1].training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert "forward" not in vars(model.lm_head)
    np.testing.assert_array_equal(first.mean_nll, QTuningPruner().prune(model, rows).choice.mean_nll)


def test_the_loss_is_that_of_the_kept_tokens(model: Any) -> None:
    """Divided by their number, and equal to what transformers computes for the same labels."""
    step = QTuningPruner().prune(model, padded(ragged(20, seed=9)))
    logits = model(input_ids=step.batch["input_ids"], attention_mask=step.batch["attention_mask"]).logits
    expected = model(**step.batch, num_items_in_batch=step.num_tokens).loss
    torch.testing.assert_close(step.loss(logits), expected, rtol=1e-5, atol=1e-6)


def test_a_step_of_several_batches_is_one_population(model: Any) -> None:
    """Thresholds are those of all rows, and as many batches come back, with the same gradients as from one."""
    rows = ragged(24, seed=10)
    parts = [{name: values[at : at + 8] for name, values in rows.items()} for at in (0, 8, 16)]
    whole, split = QTuningPruner(), QTuningPruner()
    one, three = whole.prune(model, padded(rows)), split.prune_step(model, [padded(part) for part in parts])
    assert three.record.counts == one.record.counts
    assert three.num_tokens == one.num_tokens
    gradients = []
    for step in (one, three):
        model.zero_grad()
        for batch in step.batches:
            step.loss(model(input_ids=batch["input_ids"]).logits, batch).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_more_batches_than_kept_rows_get_rows_that_weigh_nothing(model: Any) -> None:
    """Each batch can be run, and those without a row have loss 0."""
    rows = ragged(4, seed=11)
    parts = [padded({name: values[i : i + 1] for name, values in rows.items()}) for i in range(4)]
    step = QTuningPruner(0.25, bisect_max_iter=None).prune_step(model, parts)
    losses = [step.loss(model(input_ids=batch["input_ids"]).logits, batch).item() for batch in step.batches]
    assert len(step.batches) == 4
    assert np.isfinite(losses).all()
    assert losses.count(0.0) == 4 - step.record.kept


def test_rows_that_cannot_be_scored_are_counted_and_left_out(model: Any) -> None:
    """A row without a trained token is not in the population and not trained on."""
    rows = ragged(10, seed=12)
    rows["loss_mask"][4] = [0] * len(rows["loss_mask"][4])
    step = QTuningPruner(1.0).prune(model, rows)
    assert step.record.num_rejected == 1
    assert step.record.num_samples == 9 == step.record.kept
    assert step.choice.quadrants[4] == 0
    assert not step.choice.is_kept[4]


def test_a_diverged_model_is_told() -> None:
    """Where no score is finite, nothing is made up."""
    model = tiny_llama()
    with torch.no_grad():
        model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(DataError, match="none of the 5 samples of step 0 has finite scores"):
        QTuningPruner().prune(model, ragged(5))


def test_a_step_without_a_trained_token_trains_on_nothing(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It warns, and its loss is 0."""
    rows = ragged(3)
    rows["loss_mask"] = [[0] * len(mask) for mask in rows["loss_mask"]]
    step = QTuningPruner().prune(model, padded(rows))
    assert step.loss(model(input_ids=step.batch["input_ids"]).logits).item() == 0.0
    assert "no trained token" in caplog.text


def test_scores_that_are_there_give_the_same_choice(model: Any) -> None:
    """`prune_scores` takes scores of trained tokens, or of all positions."""
    rows = ragged(25, seed=13)
    random = np.random.default_rng(0)
    masks = [np.array([0, *mask[1:]]) for mask in rows["loss_mask"]]
    nll, entropy = ([random.exponential(2, int(mask.sum())) for mask in masks] for _ in range(2))
    choice = QTuningPruner(0.5, 0.7, 0.5, None).prune_scores(nll, entropy, rows["loss_mask"])
    aligned = [np.full(len(mask), np.nan) for mask in masks]
    for place, mask, values in zip(aligned, masks, nll, strict=True):
        place[mask == 1] = values
    again = QTuningPruner(0.5, 0.7, 0.5, None).prune_scores(aligned, entropy, rows["loss_mask"])
    np.testing.assert_array_equal(choice.rows.loss_mask, again.rows.loss_mask)
    offsets = np.cumsum([0, *map(len, masks)])
    expected = prune_token_masks(
        np.concatenate(masks).astype(np.int8),
        offsets,
        np.concatenate(nll),
        choice.quadrants == 2,
        token_keep_ratio=0.7,
        neighbor_lambda=0.5,
        protected=protected_tokens(np.zeros(offsets[-1], np.int64), np.concatenate(masks).astype(np.int8), ()),
    ) * np.repeat(choice.is_kept, np.diff(offsets))
    np.testing.assert_array_equal(choice.rows.loss_mask, expected)


@pytest.mark.parametrize("keep", [True, False])
def test_ends_of_turns_stay_in_the_loss(model: Any, keep: bool) -> None:
    """The last trained token of each Q2 row, and stop tokens inside of it. The record counts what is left."""
    rows = ragged(40, seed=5)
    stop = int(np.bincount(np.concatenate(rows["input_ids"])).argmax())
    pruner = QTuningPruner(0.5, 0.3, 0.5, None, keep_end_of_turn=keep, stop_token_ids=(stop,))
    choice = pruner.prune(model, rows).choice
    before, final = Rows.of(choice.rows.input_ids, np.concatenate(rows["loss_mask"]), choice.rows.lengths), choice.rows
    in_q2 = np.repeat(choice.is_kept & (choice.quadrants == 2), final.lengths)
    guarded = before.protected((stop,)) & in_q2
    assert guarded.any()
    assert bool((final.loss_mask[guarded] == 1).all()) is keep
    assert choice.record.tokens_after == int(final.loss_mask.sum())


def test_unknown_tokens_are_no_stop_tokens() -> None:
    """Scores without `input_ids`, for a model whose stop token is 0: only the ends of spans are protected."""
    masks = [np.array([0, *[1] * 12])] * 20
    nll, entropy = np.random.default_rng(0).exponential(2, (2, 20, 12))
    with_stop, without = (
        QTuningPruner(0.5, 0.5, 0.5, None, stop_token_ids=stops).prune_scores(list(nll), list(entropy), masks)
        for stops in ((0,), ())
    )
    np.testing.assert_array_equal(with_stop.rows.loss_mask, without.rows.loss_mask)


def test_a_rule_of_ones_own_decides(model: Any) -> None:
    """It sees the global batch, and its labels are what is kept."""

    def all_calibration(plane: Any) -> Any:
        return np.full(plane.num_samples, 4)

    step = QTuningPruner(rule=all_calibration).prune(model, ragged(10))
    assert step.record.kept == 10
    assert step.record.counts == {"Q1": 0, "Q2": 0, "Q3": 0, "Q4": 10}


def test_each_step_is_logged_and_recorded(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Two lines a step in the words that users know, and a record with the drift of samples seen before."""
    records: list[StepRecord] = []
    pruner = QTuningPruner(records=[records.append], bisect_max_iter=None)
    rows = ragged(20, seed=15)
    with caplog.at_level(logging.INFO, "qtune_service.training"):
        for _ in range(2):
            pruner.prune(model, rows)
    counts = dict(records[0].counts)
    assert caplog.messages[:2] == [
        f"[Q-Tuning] Quadrant distribution: {counts}",
        f"[Q-Tuning] Kept {records[0].kept}/20 samples ({records[0].kept * 5:.1f}%)",
    ]
    assert records[0].drift == {}
    assert sum(records[1].drift.values()) == 20
    assert all(pair[:2] == pair[3:] for pair in records[1].drift)
    assert [record.step for record in records] == [0, 1]


def test_a_state_restores_the_step_and_the_drift(model: Any) -> None:
    """A pruner of a resumed loop goes on where the other one was."""
    rows = ragged(20, seed=15)
    first, second = QTuningPruner(), QTuningPruner()
    first.prune(model, rows)
    second.load_state_dict(first.state_dict())
    record = second.prune(model, rows).record
    assert record.step == 1
    assert record.drift == first.prune(model, rows).record.drift
    assert sum(record.drift.values()) == 20


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"labels": torch.zeros(1, 2)}, "no `input_ids`"),
        ({"input_ids": torch.ones(1, 4, dtype=torch.long)}, "neither `labels` nor `loss_mask`"),
        ({"input_ids": torch.ones(4), "labels": torch.ones(4)}, "has shape"),
        ({"input_ids": [[1, 2]], "labels": [[1]]}, "differ in length"),
        ({"input_ids": [[1, 2, 3]], "labels": [[2, 3, -100]]}, "differ from input_ids at the same positions"),
        ({"input_ids": [[1]], "labels": [[1]], "pixel_values": [[0]]}, "pixel_values"),
        (
            {
                **dict.fromkeys(("input_ids", "labels"), torch.ones(2, 4).long()),
                "position_ids": torch.tensor([[0, 1, 2, 3], [0, 1, 0, 1]]),
            },
            "restart within a line",
        ),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused(model: Any, batch: dict[str, Any], message: str) -> None:
    """The error names what is wrong."""
    with pytest.raises(DataError, match=message):
        QTuningPruner().prune(model, batch)


def test_the_pruner_is_called_as_the_method_names_its_arguments() -> None:
    """In this order, by these names, with the paper's defaults."""
    parameters = list(inspect.signature(QTuningPruner).parameters.values())[:5]
    assert {each.name: each.default for each in parameters} == {
        "sample_keep_ratio": 0.5,
        "token_keep_ratio": 0.7,
        "neighbor_lambda": 0.5,
        "bisect_max_iter": 10,
        "group": None,
    }
    names = [each.name for each in parameters]
    assert names == ["sample_keep_ratio", "token_keep_ratio", "neighbor_lambda", "bisect_max_iter", "group"]
    assert all(each.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for each in parameters)


@pytest.mark.parametrize("name", ["sample_keep_ratio", "token_keep_ratio", "neighbor_lambda", "bisect_max_iter"])
def test_arguments_out_of_range_are_refused(name: str) -> None:
    """Before anything is trained."""
    wrong: dict[str, Any] = {name: -1}
    with pytest.raises(SpecError, match=name):
        QTuningPruner(**wrong)


def test_one_object_holds_all_arguments() -> None:
    """As well as keywords, which are its fields; both together would contradict each other."""
    arguments = QTuningArguments(sample_keep_ratio=0.25, warmup_steps=2, seed=3)
    assert QTuningPruner(arguments).arguments == arguments
    assert QTuningPruner(**asdict(arguments)).arguments == arguments
    assert QTuningPruner(0.25, warmup_steps=2, seed=3).arguments == arguments
    for both in ({"token_keep_ratio": 0.5}, {"seed": 4}):
        with pytest.raises(TypeError, match="not both"):
            QTuningPruner(arguments, **both)
    with pytest.raises(TypeError, match="colour"):
        QTuningPruner(colour="red")


def test_arguments_are_those_of_jobs() -> None:
    """The names and defaults of PruneSpec; steps of the bisection are the paper's, and warm-up is new."""
    shared = {field.name: field.default for field in fields(QTuningArguments)}
    assert set(shared) - set(PruneSpec.model_fields) == {"warmup_steps", "stop_token_ids"}
    differing = {
        name for name in shared if name in PruneSpec.model_fields and shared[name] != getattr(PruneSpec(), name)
    }
    assert differing == {"bisect_max_iter"}
