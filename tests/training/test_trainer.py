"""Q-Tuning in transformers.Trainer and TRL's SFTTrainer: what they train on is what was kept, and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from qtune_service.errors import DataError, SpecError
from qtune_service.training import QTuningArguments, QTuningPruner, StepRecord
from qtune_service.training.hf_trainer import enable_q_tuning
from tests.training.models import tiny_llama
from tests.training.ranks import run_on_ranks
from tests.training.trainers import ARGUMENTS, RATE, collate, dataset, make_trainer, run_trainer, weights

KINDS = ["transformers", "trl"]
SMALL_BATCHES: dict[str, Any] = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}


def by_hand(arguments: QTuningArguments = ARGUMENTS, num_steps: int = 3) -> tuple[list[torch.Tensor], list[StepRecord]]:
    """Weights and records of a loop that does what the trainers are to do."""
    model, rows = tiny_llama().train(), list(dataset())
    records: list[StepRecord] = []
    optimizer = torch.optim.SGD(model.parameters(), RATE)
    pruner = QTuningPruner(
        arguments.sample_keep_ratio, arguments.token_keep_ratio, bisect_max_iter=None, records=[records.append]
    )
    for step in range(num_steps):
        pruned = pruner.prune(model, collate(rows[16 * step : 16 * (step + 1)]))
        pruned.loss(model(pruned.batch["input_ids"]).logits).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [parameter.detach() for parameter in model.parameters()], records


def assert_same(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float = 1e-5) -> None:
    """Weights of two runs."""
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=tolerance)


def counts(records: list[StepRecord]) -> list[dict[str, int]]:
    """Count samples by quadrant for each step."""
    return [dict(record.counts) for record in records]


@pytest.fixture(scope="module")
def expected() -> tuple[list[torch.Tensor], list[StepRecord]]:
    return by_hand()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [{}, SMALL_BATCHES], ids=["one batch a step", "four"])
def test_weights_are_those_of_a_loop_by_hand(kind: str, sizes: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    """Also where a step is accumulated over several micro-batches: it is one population, and one mean."""
    trainer, records = run_trainer(tmp_path, kind, **sizes)
    assert counts(records) == counts(expected[1])
    assert [record.step for record in records] == [0, 1, 2]
    assert_same(weights(trainer), expected[0])
    assert not torch.equal(weights(trainer)[0], next(tiny_llama().parameters()))


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_is_that_of_the_training_forward(kind: str, tmp_path: Path) -> None:
    """Under bf16 the scores are those of the model under autocast, and training goes on."""
    _, records = run_trainer(tmp_path, kind, bf16=True)
    model, rows = tiny_llama(), collate(list(dataset())[:16])
    with torch.autocast("cpu", torch.bfloat16):
        cast = QTuningPruner(0.4, 0.6, bisect_max_iter=None).prune(model, rows).record
    plain = QTuningPruner(0.4, 0.6, bisect_max_iter=None).prune(model, rows).record
    assert records[0].thresholds == cast.thresholds != plain.thresholds
    assert len(records) == 3


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_checkpointing_changes_nothing(kind: str, expected: Any, tmp_path: Path) -> None:
    """The same rows are kept, and the same weights come out."""
    trainer, records = run_trainer(tmp_path, kind, gradient_checkpointing=True)
    assert counts(records) == counts(expected[1])
    assert_same(weights(trainer), expected[0])


@pytest.mark.parametrize("more", [{"padding_free": True}, {"packing": True, "max_length": 24}], ids=["free", "packed"])
def test_packing_trains_as_padding_does(more: dict[str, Any], expected: Any, tmp_path: Path) -> None:
    """Without padding the weights are the same; packed lines are taken apart into their rows."""
    trainer, records = run_trainer(tmp_path, "trl", **more)
    if "padding_free" in more:
        assert counts(records) == counts(expected[1])
        assert_same(weights(trainer), expected[0])
    else:
        assert records[0].num_samples > 16  # rows, not lines


def test_a_resumed_run_ends_where_an_undisturbed_one_does(tmp_path: Path) -> None:
    """Bit for bit, though what is kept depends on the step's number (warm-up, random tokens)."""
    arguments = QTuningArguments(0.5, 0.5, token_strategy="random", warmup_steps=3)
    more: dict[str, Any] = {
        "max_steps": 5,
        "optim": "adamw_torch",
        "train_sampling_strategy": "random",
        "save_strategy": "steps",
    }
    whole, records = run_trainer(tmp_path / "whole", arguments=arguments, save_steps=2, **more)
    checkpoint = str(tmp_path / "whole" / "checkpoint-2")
    resumed, rest = run_trainer(tmp_path / "again", arguments=arguments, resume=checkpoint, save_steps=9, **more)
    assert [(r.step, r.is_warmup, dict(r.counts)) for r in rest] == [
        (r.step, r.is_warmup, dict(r.counts)) for r in records[2:]
    ]
    for a, b in zip(weights(whole), weights(resumed), strict=True):
        assert torch.equal(a, b)


def test_drift_goes_on_when_a_run_resumes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Samples that were seen before the checkpoint count as seen; where it has no state, that is said."""
    _, records = run_trainer(tmp_path, save_strategy="steps", save_steps=3, max_steps=4)
    checkpoint = tmp_path / "checkpoint-3"
    _, rest = run_trainer(tmp_path, resume=str(checkpoint), max_steps=4)
    assert [record.drift for record in rest] == [record.drift for record in records[3:]]
    assert sum(rest[0].drift.values()) == 16
    (checkpoint / "q_tuning.pt").unlink()
    _, anew = run_trainer(tmp_path, resume=str(checkpoint), max_steps=4)
    assert anew[0].drift == {}
    assert "starts from scratch" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_sees_every_row(kind: str, tmp_path: Path) -> None:
    """Its loss is that of a trainer without pruning."""
    trainer, plain = make_trainer(tmp_path, kind), make_trainer(tmp_path, kind)
    enable_q_tuning(trainer, ARGUMENTS)
    found, wanted = (each.evaluate(plain.train_dataset)["eval_loss"] for each in (trainer, plain))
    assert found == wanted


def test_label_smoothing_is_over_kept_tokens(tmp_path: Path) -> None:
    """One batch a step and four give the same weights, other ones than without smoothing."""
    runs = [run_trainer(tmp_path, label_smoothing_factor=0.2, **sizes)[0] for sizes in ({}, SMALL_BATCHES)]
    assert_same(weights(runs[0]), weights(runs[1]))
    assert not torch.allclose(weights(runs[0])[0], weights(run_trainer(tmp_path)[0])[0], atol=1e-5)


def test_a_lora_adapter_is_scored_with(tmp_path: Path) -> None:
    """PEFT's wrapper is scored as it is: the adapter moves, and with it the scores."""
    peft = pytest.importorskip("peft", reason="needs peft")

    def adapted() -> Any:
        torch.manual_seed(1)
        config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=4)
        return peft.get_peft_model(tiny_llama(), config)

    trainer, records = run_trainer(tmp_path, model=adapted(), learning_rate=5.0)
    batch = collate(list(dataset())[:16])
    after = QTuningPruner(0.4, 0.6, bisect_max_iter=None).prune(trainer.model, batch).record
    before = QTuningPruner(0.4, 0.6, bisect_max_iter=None).prune(tiny_llama(), batch).record
    assert records[0].thresholds.ent_low == pytest.approx(before.thresholds.ent_low, abs=1e-4)
    assert after.thresholds.ent_low != pytest.approx(before.thresholds.ent_low, abs=1e-4)


def test_virtual_tokens_are_refused(tmp_path: Path) -> None:
    """Prompt tuning moves all positions; scores would be those of other tokens."""
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    with pytest.raises(DataError, match="the model returns"):
        run_trainer(tmp_path, model=peft.get_peft_model(tiny_llama(), config))


def test_records_are_in_the_trainers_log(tmp_path: Path) -> None:
    """Beside each loss, for whatever the trainer reports to."""
    trainer, records = run_trainer(tmp_path)
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["q_tuning/kept_share"] for entry in logged] == [record.kept / 16 for record in records]
    assert logged[0]["q_tuning/quadrants/Q2"] == records[0].counts["Q2"]


def test_warm_up_is_in_the_trainers_log(tmp_path: Path) -> None:
    """With what is known of it; quadrants and thresholds come with the method's own steps."""
    trainer, records = run_trainer(tmp_path, arguments=QTuningArguments(0.25, warmup_steps=2))
    assert [(record.is_warmup, record.kept) for record in records[:2]] == [(True, 4), (True, 4)]
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["q_tuning/kept_share"] for entry in logged[:2]] == [0.25, 0.25]
    assert [any("quadrants" in name for name in entry) for entry in logged] == [False, False, True]
    assert all(np.isfinite(list(entry.values())).all() for entry in logged)


def stand_in(**changes: Any) -> Any:
    """Return a stand-in for a trainer before pruning is enabled."""
    args = {"world_size": 1, "n_gpu": 1, "average_tokens_across_devices": True}
    own = {"tp": 1, "model_accepts_loss_kwargs": True, "is_deepspeed_enabled": False, "config": SimpleNamespace()}
    own = own | {name: value for name, value in changes.items() if name in own}
    return SimpleNamespace(
        args=SimpleNamespace(**args | {name: value for name, value in changes.items() if name in args}),
        model=SimpleNamespace(config=own["config"]),
        compute_loss_func=None,
        get_tp_size=lambda: own["tp"],
        get_cp_size=lambda: 1,
        get_sp_size=lambda: 1,
        **own,
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_accepts_loss_kwargs": False}, "does not use num_items_in_batch"),
        ({"world_size": 2, "average_tokens_across_devices": False}, "average_tokens_across_devices is off"),
        ({"n_gpu": 2}, "DataParallel"),
        ({"tp": 2}, "splits rows or layers"),
        ({"is_deepspeed_enabled": True}, "DeepSpeed"),
        ({"config": SimpleNamespace(is_encoder_decoder=True)}, "encoder-decoder"),
    ],
)
def test_what_would_not_be_sound_is_refused(changes: dict[str, Any], message: str) -> None:
    """Before anything is trained, with what to do instead."""
    with pytest.raises(SpecError, match=message) as error:
        enable_q_tuning(stand_in(**changes))
    assert error.value.hint


def test_it_is_enabled_once(tmp_path: Path) -> None:
    """A second time would prune what was pruned; the trainer is still one of its class."""
    trainer = make_trainer(tmp_path)
    own = type(trainer)
    enable_q_tuning(trainer)
    assert isinstance(trainer, own)
    with pytest.raises(SpecError, match="already"):
        enable_q_tuning(trainer)


def test_batches_of_more_than_text_are_refused(tmp_path: Path) -> None:
    """What belongs to which row of images is not known."""
    trainer = make_trainer(tmp_path, remove_unused_columns=False)
    trainer.data_collator = lambda rows: {**collate(rows), "pixel_values": torch.zeros(len(rows), 3)}
    enable_q_tuning(trainer)
    with pytest.raises(DataError, match="pixel_values"):
        trainer.train()


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_train_as_one(kind: str, expected: Any, tmp_path: Path) -> None:
    """Under DDP and FSDP2: the population is that of both ranks, and they end with the weights of one process."""
    options = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    first, second = run_on_ranks([("trainer_steps", (kind, options, str(tmp_path)))], 2, tmp_path)
    assert first[0]["records"] == counts(expected[1])
    assert second[0]["records"] == []
    for rank in (first[0], second[0]):
        assert rank["is_sharded"] == (kind == "fsdp")
        assert_same(rank["weights"], expected[0])
