"""Trainers over a few random rows: plain SGD and rows in their order, so that weights can be compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from qtune_service.training import QTuningArguments, StepRecord
from qtune_service.training.hf_trainer import enable_q_tuning
from tests.training.models import padded, ragged, tiny_llama

ARGUMENTS = QTuningArguments(sample_keep_ratio=0.4, token_keep_ratio=0.6, bisect_max_iter=None)
RATE = 0.1


def dataset(num_rows: int = 48, seed: int = 31) -> Dataset:
    """Rows of tokens with labels."""
    rows = ragged(num_rows, seed=seed)
    labels = [
        [token if on else -100 for token, on in zip(ids, mask, strict=True)]
        for ids, mask in zip(rows["input_ids"], rows["loss_mask"], strict=True)
    ]
    return Dataset.from_dict({"input_ids": rows["input_ids"], "labels": labels})


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Return a padded batch."""
    masks = [[int(label != -100) for label in row["labels"]] for row in rows]
    return padded({"input_ids": [list(row["input_ids"]) for row in rows], "loss_mask": masks})


def make_trainer(folder: Path, kind: str = "transformers", model: Any = None, **changes: Any) -> Any:
    """Return a trainer of `kind`, transformers or trl: three steps of 16 rows."""
    options = {
        "output_dir": str(folder), "max_steps": 3, "per_device_train_batch_size": 16, "learning_rate": RATE,
        "lr_scheduler_type": "constant", "optim": "sgd", "max_grad_norm": 0.0, "train_sampling_strategy": "sequential",
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True,
        "gradient_checkpointing": False, "logging_steps": 1, **changes,
    }  # fmt: skip
    model = tiny_llama() if model is None else model
    if kind == "trl":
        import trl

        config = trl.SFTConfig(**{"max_length": None, **options})
        return trl.SFTTrainer(model, args=config, train_dataset=dataset(), processing_class=_tokenizer())
    from transformers import Trainer, TrainingArguments

    return Trainer(model, TrainingArguments(**options), data_collator=collate, train_dataset=dataset())


def run_trainer(
    folder: Path,
    kind: str = "transformers",
    arguments: QTuningArguments = ARGUMENTS,
    resume: str | None = None,
    model: Any = None,
    **changes: Any,
) -> tuple[Any, list[StepRecord]]:
    """Run a trainer; return it and the records of its steps (of the first rank)."""
    records: list[StepRecord] = []
    trainer = make_trainer(folder, kind, model, **changes)
    enable_q_tuning(trainer, arguments, records=[records.append])
    trainer.train(resume_from_checkpoint=resume)
    return trainer, records


def weights(trainer: Any) -> list[torch.Tensor]:
    """All parameters, whole."""
    found = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trainer.model.parameters()]
    return [parameter.detach().clone() for parameter in found]


def _tokenizer() -> Any:
    """SFTTrainer wants one, though rows are tokens already."""
    from transformers import AutoTokenizer

    from tests.jobs import DEMO_MODEL

    return AutoTokenizer.from_pretrained(DEMO_MODEL)
