"""Between epochs: score the whole dataset again with the model as it is, prune it as a job does, train on what is kept.

    prune = by_command("data.jsonl", "--sample-keep-ratio", "0.5")       # or by_service(Client(), {"input": ...})
    trainer = SFTTrainer(model, train_dataset=rescored("base-model", prune, "out/epoch-0"), ...)
    rescore_every_epoch(trainer, prune, "out")
    trainer.train()

The population is the dataset, not a batch, and the engine is the job's (vLLM, other machines), so an epoch costs one
pass of scoring instead of one forward a step. The Trainer plans its steps and its learning rate once, for as many rows
as its first dataset has. So the rows are swapped below the dataset that it holds, whose length stays: kept counts
differ by ties only. Each epoch's rows come from a finished output of its own, which a resumed run finds again. With
several ranks the first one prunes, the others wait for it however long it takes (waiting.py), and all load the same.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from transformers import TrainerCallback

from qtune_service.errors import DataError, QTuneError, SpecError
from qtune_service.output.layout import Output
from qtune_service.output.reader import FinishedOutput
from qtune_service.training.distributed import all_ranks, by_first, on_all

log = logging.getLogger(__name__)
COLUMNS = ["input_ids", "labels"]
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""Variables of a training run that a job in a process of its own must not take for its own."""

Prune = Callable[[str, str], None]
"""From a model's folder and an output: makes the output."""


def by_command(*arguments: str) -> Prune:
    """By `qtune prune ARGUMENTS` on this machine, in a process of its own. It shares the GPUs with the trainer."""

    def prune(model: str, output: str) -> None:
        command = [sys.executable, "-m", "qtune_service.cli", "prune", *arguments, "--model", model, "--output", output]
        own = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip()[-2000:]
            raise QTuneError(f"qtune prune ended with {done.returncode}:\n{last}", f"Command: {' '.join(command)}")

    return prune


class Service(Protocol):
    """What is asked of a client of the service."""

    def submit(self, spec: Mapping[str, Any]) -> Any:
        """Queue a job."""
        ...

    def wait(self, job_id: str) -> Any:
        """The job once it has ended."""
        ...


def by_service(client: Service, spec: Mapping[str, Any]) -> Prune:
    """By a job of the service, on whatever machines it has. spec: a job's, without its model's name and its output.

    Models and outputs must lie where both the service and the trainer reach them.
    """

    def prune(model: str, output: str) -> None:
        name = _absolute(model) if Path(model).is_dir() else model
        whole = {**spec, "model": {**spec.get("model", {}), "name": name}, "output": {"path": _absolute(output)}}
        job = client.wait(client.submit(whole).id)
        if job.status != "succeeded":
            said = f": {job.error.message}" if job.error else ""
            raise QTuneError(f"job {job.id} of the service is {job.status}{said}", "Its log says more.")

    return prune


def _absolute(place: str) -> str:
    """A folder as another process names it; an URI is one already."""
    return place if "://" in place else str(Path(place).resolve())


def rescored(model: str, prune: Prune, output: str) -> Any:
    """A datasets.Dataset of what is kept of a dataset under a model; an output that is finished is used as it is.

    All ranks of the run call it together.
    """
    with all_ranks() as ranks:
        if not ranks.from_first(ranks.rank == 0 and _is_finished(output)):
            by_first(lambda: prune(model, output), ranks)
        return on_all(lambda: pruned_dataset(output), ranks)


def _is_finished(output: str) -> bool:
    return Output(output).manifest is not None


def pruned_dataset(output: str) -> Any:
    """The kept rows of a finished output, as a datasets.Dataset of input_ids and labels."""
    import datasets

    finished = FinishedOutput(output)
    files = [finished.folder.part("pruned", shard) for shard in finished.pruned_shards]
    if not files:
        raise DataError(f"{output} kept no sample", "Prune it with a larger --sample-keep-ratio.")
    return datasets.load_dataset("parquet", data_files=files, split="train").select_columns(COLUMNS)


class EpochRows:
    """A dataset of a fixed length whose rows can be swapped."""

    def __init__(self, rows: Any) -> None:
        self._rows, self._length = rows, len(rows)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> Any:
        return self._rows[place % len(self._rows)]

    def swap(self, rows: Any) -> None:
        """Other rows from now on. Where there are more than before, the last ones wait; where fewer, the first ones
        come twice."""
        if len(rows) != self._length:
            log.warning("this epoch has %d rows, and the trainer draws %d", len(rows), self._length)
        self._rows = rows


class Rescoring(TrainerCallback):  # type: ignore[misc]
    """Swaps the rows when an epoch but the first begins."""

    def __init__(self, trainer: Any, rows: EpochRows, prune: Prune, outputs: str) -> None:
        self._trainer, self._rows, self._prune, self._outputs = trainer, rows, prune, outputs

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Save the model, prune with it on the first rank, and load what is kept on all."""
        epoch = int(state.epoch or 0)
        if epoch == 0:
            return
        model, output = f"{self._outputs}/model-{epoch}", f"{self._outputs}/epoch-{epoch}"
        with all_ranks() as ranks:
            if not ranks.from_first(ranks.rank == 0 and _is_finished(output)):
                self._trainer.save_model(model)  # by all ranks: they may hold parts of it
                by_first(lambda: self._prune(_absolute(model), output), ranks)
            self._rows.swap(on_all(lambda: pruned_dataset(output), ranks))


def rescore_every_epoch(trainer: Any, prune: Prune, outputs: str) -> None:
    """Prune again before each epoch but the first, into OUTPUTS/epoch-N. Raises SpecError for what does not go with it.

    With several ranks all must see the folder.
    """
    args, rows = trainer.args, trainer.train_dataset
    if "://" in outputs:
        raise SpecError(f"{outputs} is no folder, and models are saved there too", "Name a folder that all ranks see.")
    if args.dataloader_persistent_workers:
        raise SpecError("workers of the data loader outlive an epoch", "Leave out dataloader_persistent_workers.")
    if args.train_sampling_strategy == "group_by_length":
        raise SpecError("rows are grouped by the lengths of the first epoch's", "Use another train_sampling_strategy.")
    if getattr(args, "packing", False):
        raise SpecError("the trainer has packed the first epoch's rows", "Use padding_free=True in place of packing.")
    trainer.train_dataset = EpochRows(rows.select_columns(COLUMNS))
    trainer.add_callback(Rescoring(trainer, trainer.train_dataset, prune, outputs))
