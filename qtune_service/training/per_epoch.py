"""Prune between epochs: score the whole dataset with the current model, prune it as a job does, train on the kept rows.

    prune = by_command("data.jsonl", "--sample-keep-ratio", "0.5")       # or by_service(Client(), {"input": ...})
    trainer = SFTTrainer(model, train_dataset=rescored("base-model", prune, "out/epoch-0"), ...)
    rescore_every_epoch(trainer, prune, "out")
    trainer.train()

The population is the dataset, not a batch, and the engine is the job's (vLLM, other machines). So an epoch costs one
scoring pass instead of one forward pass per step. The Trainer plans its steps and learning rate once, from the length
of its first dataset. So the rows are swapped inside that dataset, and its length stays. Kept counts differ by ties
only. Each epoch's rows come from their own finished output, which a resumed run finds again. With several ranks the
first one prunes while the others wait (distributed.py), and all load the same rows.
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
from qtune_service.training.distributed import all_ranks, run_on_all_ranks, run_on_first_rank

log = logging.getLogger(__name__)
COLUMNS = ["input_ids", "labels"]
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "MASTER_", "LOCAL_", "GROUP_", "ROLE_", "TORCHELASTIC_", "ACCELERATE_", "FSDP_")
"""Variables of a training launcher that a job in a child process must not inherit."""

Prune = Callable[[str, str], None]
"""Function that creates an output from a model folder: (model, output)."""


def by_command(*arguments: str) -> Prune:
    """Prune by `qtune prune ARGUMENTS` in a child process, which shares the GPUs with the trainer."""

    def prune(model: str, output: str) -> None:
        command = [sys.executable, "-m", "qtune_service.cli", "prune", *arguments, "--model", model, "--output", output]
        own = {name: value for name, value in os.environ.items() if not name.startswith(OF_LAUNCHERS)}
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr or done.stdout).strip()[-2000:]
            raise QTuneError(f"qtune prune ended with {done.returncode}:\n{last}", f"Command: {' '.join(command)}")

    return prune


class Service(Protocol):
    """Required methods of a service client."""

    def submit(self, spec: Mapping[str, Any]) -> Any:
        """Queue a job."""
        ...

    def wait(self, job_id: str) -> Any:
        """Wait until the job ends, and return it."""
        ...


def by_service(client: Service, spec: Mapping[str, Any]) -> Prune:
    """Prune by a job of the service. spec: a job spec without model name and output.

    Models and outputs must be in storage that both the service and the trainer can access.
    """

    def prune(model: str, output: str) -> None:
        name = _absolute(model) if Path(model).is_dir() else model
        whole = {**spec, "model": {**spec.get("model", {}), "name": name}, "output": {"path": _absolute(output)}}
        job = client.wait(client.submit(whole).id)
        if job.status != "succeeded":
            said = f": {job.error.message}" if job.error else ""
            raise QTuneError(f"job {job.id} of the service is {job.status}{said}", "See the log of the job.")

    return prune


def _absolute(place: str) -> str:
    """Return an absolute path, or a URI unchanged."""
    return place if "://" in place else str(Path(place).resolve())


def rescored(model: str, prune: Prune, output: str) -> Any:
    """Return the kept rows under a model as a datasets.Dataset. A finished output is reused.

    All ranks call it together.
    """
    with all_ranks() as ranks:
        if not ranks.from_first(ranks.rank == 0 and _is_finished(output)):
            run_on_first_rank(lambda: prune(model, output), ranks)
        return run_on_all_ranks(lambda: pruned_dataset(output), ranks)


def _is_finished(output: str) -> bool:
    return Output(output).manifest is not None


def pruned_dataset(output: str) -> Any:
    """Return the kept rows of a finished output as a datasets.Dataset of input_ids and labels."""
    import datasets

    finished = FinishedOutput(output)
    files = [finished.folder.at(finished.path("pruned", shard)) for shard in finished.pruned_shards]
    if not files:
        raise DataError(f"{output} kept no sample", "Prune it with a larger --sample-keep-ratio.")
    return datasets.load_dataset("parquet", data_files=files, split="train").select_columns(COLUMNS)


class EpochRows:
    """Dataset of a fixed length with replaceable rows."""

    def __init__(self, rows: Any) -> None:
        self._rows, self._length = rows, len(rows)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, place: int) -> Any:
        return self._rows[place % len(self._rows)]

    def swap(self, rows: Any) -> None:
        """Replace the rows. Surplus rows are not drawn; missing ones repeat the first rows."""
        if len(rows) != self._length:
            log.warning("this epoch has %d rows, and the trainer draws %d", len(rows), self._length)
        self._rows = rows


class Rescoring(TrainerCallback):  # type: ignore[misc]
    """Callback that replaces the rows before each epoch except the first."""

    def __init__(self, trainer: Any, rows: EpochRows, prune: Prune, outputs: str) -> None:
        self._trainer, self._rows, self._prune, self._outputs = trainer, rows, prune, outputs

    def on_epoch_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Save the model, prune on the first rank, and load the kept rows on all ranks."""
        epoch = int(state.epoch or 0)
        if epoch == 0:
            return
        model, output = f"{self._outputs}/model-{epoch}", f"{self._outputs}/epoch-{epoch}"
        with all_ranks() as ranks:
            if not ranks.from_first(ranks.rank == 0 and _is_finished(output)):
                self._trainer.save_model(model)  # on all ranks, which may hold shards
                run_on_first_rank(lambda: self._prune(_absolute(model), output), ranks)
            self._rows.swap(run_on_all_ranks(lambda: pruned_dataset(output), ranks))


def rescore_every_epoch(trainer: Any, prune: Prune, outputs: str) -> None:
    """Prune before each epoch except the first, into OUTPUTS/epoch-N. Raises SpecError for unsupported settings.

    All ranks must have access to the folder.
    """
    args, rows = trainer.args, trainer.train_dataset
    if "://" in outputs:
        raise SpecError(
            f"{outputs} is not a folder, and models are saved there too", "Give a folder that all ranks can access."
        )
    if args.dataloader_persistent_workers:
        raise SpecError("data loader workers outlive an epoch", "Remove dataloader_persistent_workers.")
    if args.train_sampling_strategy == "group_by_length":
        raise SpecError("rows are grouped by the lengths of the first epoch", "Use another train_sampling_strategy.")
    if getattr(args, "packing", False):
        raise SpecError(
            "the trainer has packed the rows of the first epoch", "Use padding_free=True instead of packing."
        )
    trainer.train_dataset = EpochRows(rows.select_columns(COLUMNS))
    trainer.add_callback(Rescoring(trainer, trainer.train_dataset, prune, outputs))
