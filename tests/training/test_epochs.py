"""Scoring the dataset again between epochs: real jobs, a real trainer."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from qtune_service.errors import QTuneError, SpecError
from qtune_service.training.epochs import EpochRows, Prune, by_command, by_service, rescore_every_epoch, rescored
from tests.jobs import DEMO_DATA, DEMO_MODEL, manifest, rows
from tests.training.trainers import collate

JOB = (str(DEMO_DATA), "--limit", "120", "--engine", "reference", "--dtype", "float32", "--sample-keep-ratio", "0.5")
BATCH = 15


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job's output for the first epoch, with the base model."""
    output = tmp_path_factory.mktemp("epochs") / "epoch-0"
    by_command(*JOB)(DEMO_MODEL, str(output))
    return output


def demo_trainer(first: Path, folder: Path, **changes: Any) -> Any:
    """A trainer of the demo's model on what a job kept."""
    options = {
        "output_dir": str(folder), "per_device_train_batch_size": BATCH, "num_train_epochs": 2, "learning_rate": 1e-3,
        "use_cpu": True, "bf16": False, "report_to": [], "save_strategy": "no", "disable_tqdm": True, **changes,
    }  # fmt: skip
    data = rescored(DEMO_MODEL, never, str(first))
    model = AutoModelForCausalLM.from_pretrained(DEMO_MODEL, dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(DEMO_MODEL)
    return Trainer(
        model, TrainingArguments(**options), data_collator=collate, train_dataset=data, processing_class=tokenizer
    )


def never(model: str, output: str) -> None:
    raise AssertionError(f"{output} was there already, and {model} was to score it")


def test_an_epoch_trains_on_what_the_model_keeps_by_then(first: Path, tmp_path: Path) -> None:
    """The second epoch's output is scored with the saved model, has other rows, and is what the trainer then draws; a
    resumed run finds it again."""
    before = tokens(first)
    size = len(before)
    seen: list[tuple[int, ...]] = []
    middle = -(-size // BATCH) + 1  # a step into the second epoch

    def note(batch: list[dict[str, Any]]) -> Any:
        seen.extend(tuple(row["input_ids"]) for row in batch)
        return collate(batch)

    trainer = demo_trainer(first, tmp_path / "run", save_strategy="steps", save_steps=middle)
    trainer.data_collator = note
    rescore_every_epoch(trainer, by_command(*JOB), str(tmp_path))
    trainer.train()
    after = tokens(tmp_path / "epoch-1")
    assert manifest(tmp_path / "epoch-1")["spec"]["model"]["name"] == str(tmp_path / "model-1")
    assert Counter(after) != Counter(before) == Counter(seen[:size])
    assert Counter(seen[size:]) == Counter(after[place % len(after)] for place in range(size))
    rest = seen[size + BATCH :]
    seen.clear()
    resumed = demo_trainer(first, tmp_path / "again")
    resumed.data_collator = note
    rescore_every_epoch(resumed, never, str(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{middle}"))
    assert seen == rest


def tokens(output: Path) -> list[tuple[int, ...]]:
    """The rows that an output kept."""
    return [tuple(row["input_ids"]) for row in rows(output / "pruned")]


def test_a_job_that_fails_ends_the_training(tmp_path: Path) -> None:
    """With what the command said."""
    with pytest.raises(QTuneError, match="ended with 3"):
        by_command(str(tmp_path / "nothing.jsonl"), "--engine", "reference")(DEMO_MODEL, str(tmp_path / "out"))


class Recorded:
    """A service that notes what it is asked, and answers with a status."""

    def __init__(self, status: str) -> None:
        self.status, self.spec = status, ""

    def submit(self, spec: Mapping[str, Any]) -> Any:
        """Note it."""
        self.spec = json.dumps(spec)
        return SimpleNamespace(id="job-1")

    def wait(self, job_id: str) -> Any:
        """How it ended."""
        error = SimpleNamespace(message="disk full") if self.status == "failed" else None
        return SimpleNamespace(id=job_id, status=self.status, error=error)


def test_the_service_is_asked_for_the_same_job_with_another_model() -> None:
    """Model and output are put into the spec; a job that failed is an error that says why."""
    service = Recorded("succeeded")
    prune: Prune = by_service(service, {"input": {"paths": ["/data"]}, "model": {"dtype": "float32"}})
    prune("/models/3", "/out/3")
    assert json.loads(service.spec) == {
        "input": {"paths": ["/data"]},
        "model": {"dtype": "float32", "name": "/models/3"},
        "output": {"path": "/out/3"},
    }
    with pytest.raises(QTuneError, match="job job-1 of the service is failed: disk full"):
        by_service(Recorded("failed"), {})("/models/3", "/out/3")


def test_the_length_stays(caplog: pytest.LogCaptureFixture) -> None:
    """The trainer has planned for it: more rows wait, fewer come again, and both are said."""
    data = EpochRows([1, 2, 3])
    data.swap([4, 5, 6, 7])
    assert [data[place] for place in range(len(data))] == [4, 5, 6]
    data.swap([8, 9])
    assert [data[place] for place in range(len(data))] == [8, 9, 8]
    assert caplog.messages == [
        "this epoch has 4 rows, and the trainer draws 3",
        "this epoch has 2 rows, and the trainer draws 3",
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataloader_persistent_workers": True}, "outlive an epoch"),
        ({"train_sampling_strategy": "group_by_length"}, "grouped by the lengths"),
        ({"packing": True}, "has packed"),
    ],
)
def test_what_holds_on_to_the_first_rows_is_refused(changes: dict[str, Any], message: str) -> None:
    """Before training."""
    known = {"dataloader_persistent_workers": False, "train_sampling_strategy": "random", "packing": False}
    trainer = SimpleNamespace(args=SimpleNamespace(**known | changes), train_dataset=Dataset.from_dict({}))
    with pytest.raises(SpecError, match=message):
        rescore_every_epoch(trainer, never, "out")
