"""Trainers of the demo's model whose rows a job chooses again between epochs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.jobs import DEMO_DATA, DEMO_MODEL, rows
from tests.training.trainers import collate

JOB = (str(DEMO_DATA), "--limit", "120", "--engine", "reference", "--dtype", "float32", "--sample-keep-ratio", "0.5")
BATCH = 15


def demo_trainer(data: Any, folder: Path, **changes: Any) -> Any:
    """Return a trainer of the demo's model on what a job kept."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    options = {
        "output_dir": str(folder), "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "learning_rate": 1e-3,
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, **changes,
    }  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    return Trainer(
        model, TrainingArguments(**options), data_collator=collate, train_dataset=data, processing_class=tokenizer
    )


def noting(seen: list[tuple[int, ...]]) -> Any:
    """Return a collator that notes the rows it is given."""

    def note(batch: list[dict[str, Any]]) -> Any:
        seen.extend(tuple(row["input_ids"]) for row in batch)
        return collate(batch)

    return note


def tokens(output: Path) -> list[tuple[int, ...]]:
    """Return the rows that an output kept."""
    return [tuple(row["input_ids"]) for row in rows(output / "pruned")]
