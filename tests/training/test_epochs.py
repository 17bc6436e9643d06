"""Scoring the dataset again between epochs: real jobs, a real trainer."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset

from qtune_service.client import Client
from qtune_service.errors import QTuneError, SpecError
from qtune_service.server.settings import Settings
from qtune_service.training.per_epoch import EpochRows, Prune, by_command, by_service, rescore_every_epoch, rescored
from tests.api.servers import serving
from tests.jobs import DEMO_DATA, DEMO_MODEL, manifest
from tests.training.epoch_runs import BATCH, JOB, demo_trainer, noting, tokens
from tests.training.ranks import run_on_ranks


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a job's output for the first epoch, with the base model."""
    output = tmp_path_factory.mktemp("epochs") / "epoch-0"
    by_command(*JOB)(DEMO_MODEL, str(output))
    return output


def never(model: str, output: str) -> None:
    raise AssertionError(f"{output} was there already, and {model} was to score it")


def test_an_epoch_trains_on_what_the_model_keeps_by_then(first: Path, tmp_path: Path) -> None:
    """The second epoch's output is scored with the saved model, has other rows, and is what the trainer then draws; a
    resumed run finds it again."""
    before = tokens(first)
    size = len(before)
    seen: list[tuple[int, ...]] = []
    middle = -(-size // BATCH) + 1  # a step into the second epoch

    data = rescored(DEMO_MODEL, never, str(first))
    trainer = demo_trainer(data, tmp_path / "run", save_strategy="steps", save_steps=middle)
    trainer.data_collator = noting(seen)
    rescore_every_epoch(trainer, by_command(*JOB), str(tmp_path))
    trainer.train()
    after = tokens(tmp_path / "epoch-1")
    assert manifest(tmp_path / "epoch-1")["spec"]["model"]["name"] == str(tmp_path / "model-1")
    assert Counter(after) != Counter(before) == Counter(seen[:size])
    assert Counter(seen[size:]) == Counter(after[place % len(after)] for place in range(size))
    rest = seen[size + BATCH :]
    seen.clear()
    resumed = demo_trainer(data, tmp_path / "again")
    resumed.data_collator = noting(seen)
    rescore_every_epoch(resumed, never, str(tmp_path))
    resumed.train(resume_from_checkpoint=str(tmp_path / "run" / f"checkpoint-{middle}"))
    assert seen == rest


def test_two_ranks_train_on_what_one_job_keeps(tmp_path: Path) -> None:
    """The first rank runs the jobs, before the first epoch and after it; both draw from what these keep, each its
    share, and end with the same weights."""
    first, second = run_on_ranks([("rescored_epochs", (str(tmp_path),))], 2, tmp_path)
    assert [rank[0]["jobs"] for rank in (first, second)] == [["epoch-0", "epoch-1"], []]
    assert manifest(tmp_path / "epoch-1")["spec"]["model"]["name"] == str(tmp_path / "model-1")
    sizes = {rank[0]["length"] for rank in (first, second)}
    (size,) = sizes
    before, after = tokens(tmp_path / "epoch-0"), tokens(tmp_path / "epoch-1")
    assert size == len(before)
    assert Counter(before) != Counter(after)
    for epoch, expected in enumerate((before, [after[place % len(after)] for place in range(size)])):
        drawn = Counter(first[0]["epochs"][epoch] + second[0]["epochs"][epoch])
        assert set(drawn) == set(expected)
        assert not Counter(expected) - drawn  # a row may come twice, where ranks would have unequal batches
        assert drawn.total() <= size + 2 * BATCH
    for a, b in zip(first[0]["weights"], second[0]["weights"], strict=True):
        assert torch.equal(a, b)


def test_waiting_for_another_rank_is_not_bounded(tmp_path: Path) -> None:
    """Work may take longer than collectives may; where it fails, or one rank cannot load what it made, all ranks say
    the same."""
    calls: list[tuple[str, Any]] = [("long_work", (5.0, 12.0)), ("failing_job", (str(tmp_path),)), ("failing_load", ())]
    first, second = run_on_ranks(calls, 2, tmp_path)
    assert first[0] >= 12
    assert second[0] >= 10
    assert first[1] == second[1]
    assert first[1][0] == "QTuneError"
    assert "ended with 3" in first[1][1]
    assert first[2] == second[2] == ("DataError", "rank 1 sees no folder")


def test_processes_that_do_not_know_each_other_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would run a job of its own into the same output."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="is not initialized") as error:
        rescored("model", never, "out")
    assert "TrainingArguments" in error.value.hint


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
        """Wait for a job and return how it ended."""
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


def test_a_real_server_prunes_for_the_trainer(first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked by its client with relative folders, it keeps what the command keeps; why a job failed comes back."""
    for name in ("QTUNE_URL", "QTUNE_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path)
    shutil.copytree(DEMO_MODEL, "model")
    (tmp_path / "bad.jsonl").write_text("no record")
    mine = str(tmp_path)
    settings = Settings(
        data_root=tmp_path / "server",
        allowed_inputs=(str(DEMO_DATA.parent), mine),
        allowed_models=(mine,),
        allowed_outputs=(mine,),
    )
    spec: dict[str, Any] = {
        "input": {"paths": [str(DEMO_DATA)], "limit": 120},
        "model": {"dtype": "float32"},
        "engine": {"name": "reference"},
        "prune": {"sample_keep_ratio": 0.5},
    }
    with serving(settings) as http, Client(str(http.base_url)) as client:
        data = rescored("model", by_service(client, spec), "out")
        (job,) = client.list()
        with pytest.raises(QTuneError, match=r"job \S+ of the service is failed: .*bad\.jsonl"):
            rescored("model", by_service(client, {**spec, "input": {"paths": [f"{mine}/bad.jsonl"]}}), "none")
    assert data.to_list() == rescored(DEMO_MODEL, never, str(first)).to_list()
    assert (job.model, job.output) == (f"{mine}/model", f"{mine}/out")


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


def test_models_are_saved_to_a_folder() -> None:
    """An URI would become a folder with a strange name."""
    with pytest.raises(SpecError, match="is not a folder"):
        rescore_every_epoch(SimpleNamespace(args=None, train_dataset=None), never, "s3://bucket/out")
