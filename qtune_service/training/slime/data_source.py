"""Data source for slime over a job's pruned output: read by shards, reshuffled each epoch, resumable.

--prompt-data names the output folder. Its rows are tokens with masks, so they need no chat template, and
`generate_rollout` replaces slime's own SFT rollout. Memory holds one shard. With --rollout-shuffle, shards and the rows
of each are shuffled by --rollout-seed and the epoch, so a resumed run draws the remaining rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from qtune_service.errors import OutputConflictError, SpecError
from qtune_service.export.trainers import slime as slime_columns
from qtune_service.output.reader import FinishedOutput

log = logging.getLogger(__name__)
STATE = ("epoch_id", "sample_offset", "sample_index")


class PrunedDataSource:
    """Data source interface of slime. Raises SpecError for unsupported arguments."""

    def __init__(self, args: Any) -> None:
        if not getattr(args, "prompt_data", None):
            raise SpecError("no job output is given", "Pass its folder as --prompt-data.")
        if getattr(args, "n_samples_per_prompt", 1) != 1:
            raise SpecError("n_samples_per_prompt would repeat the pruned rows", "Set it to 1.")
        self._args, self._finished = args, FinishedOutput(str(args.prompt_data))
        self._shards = self._finished.pruned_shards
        self.dataset = range(sum(self._shards.values()))
        """Older versions of slime use its length."""
        if not self.dataset:
            raise SpecError(f"{args.prompt_data} kept no sample", "Prune it with a larger --sample-keep-ratio.")
        self.epoch_id = self.sample_offset = self.sample_index = 0
        self._rows = self._stream()

    def __len__(self) -> int:
        return len(self.dataset)

    def get_samples(self, num_samples: int) -> list[list[Any]]:
        """Return the next rows, each as a group. After the last row a new epoch starts."""
        return [[self._sample(next(self._rows))] for _ in range(num_samples)]

    def add_samples(self, samples: list[list[Any]]) -> None:
        """Raise SpecError, as slime's own dataset source does: a pruned output is read-only."""
        if samples:
            raise SpecError("a pruned output is read-only", "Use generate_rollout of qtune_service.training.slime.")

    def save(self, rollout_id: int) -> None:
        """Save the position."""
        if self._args.save is None:
            return
        path = self._state_path(self._args.save, rollout_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name) for name in STATE} | {"data": self._fingerprint()}
        path.write_text(json.dumps(state), encoding="utf-8")

    def load(self, rollout_id: int | None = None) -> None:
        """Restore a saved position. Raises OutputConflictError if the data differ."""
        if self._args.load is None or rollout_id is None:
            return
        path = self._state_path(self._args.load, rollout_id)
        if not path.exists():
            log.warning("%s does not exist: starting at the first row", path)
            return
        state = json.loads(path.read_text(encoding="utf-8"))
        if state["data"] != self._fingerprint():
            raise OutputConflictError(
                f"{path} was saved with another output than {self._finished.root}",
                "Pass that output as --prompt-data, or load a checkpoint without this file to start from scratch.",
            )
        for name in STATE:
            setattr(self, name, state[name])
        self._rows = self._stream()

    def _stream(self) -> Iterator[dict[str, Any]]:
        """Yield rows from the current position on, epoch after epoch."""
        while True:
            skipped = self.sample_offset
            for shard in self._order(len(self._shards), shard=None):
                index, num_rows = list(self._shards.items())[shard]
                if skipped >= num_rows:
                    skipped -= num_rows
                    continue
                rows = slime_columns(self._finished.pruned(index, ["input_ids", "loss_mask"])).to_pylist()
                for place in self._order(num_rows, shard=index)[skipped:]:
                    self.sample_offset += 1
                    yield rows[place]
                skipped = 0
            self.epoch_id, self.sample_offset = self.epoch_id + 1, 0

    def _order(self, number: int, shard: int | None) -> list[int]:
        """Return the order of shards, or of a shard's rows, in this epoch."""
        if not getattr(self._args, "rollout_shuffle", False):
            return list(range(number))
        seed = [int(getattr(self._args, "rollout_seed", 0)), self.epoch_id, *([] if shard is None else [shard + 1])]
        return list(np.random.default_rng(seed).permutation(number).tolist())

    def _sample(self, row: dict[str, Any]) -> Any:
        from slime.utils.types import Sample

        number = self.sample_index
        self.sample_index += 1
        return Sample(**row, group_index=number, index=number, reward=0, status=Sample.Status.COMPLETED)

    def _fingerprint(self) -> str:
        files = [(file["path"], file["sha256"]) for file in self._finished.manifest["files"]]
        return hashlib.sha256(json.dumps(sorted(files)).encode()).hexdigest()

    @staticmethod
    def _state_path(folder: str, rollout_id: int) -> Path:
        return Path(folder) / "rollout" / f"q_tuning_data_{rollout_id}.json"


def generate_rollout(args: Any, rollout_id: int, data_source: Any, evaluation: bool = False) -> list[list[Any]]:
    """Return the source's next rows as a rollout, for --rollout-function-path."""
    if evaluation:
        raise SpecError(
            f"rollout {rollout_id}: nothing is generated, so evaluation is not possible", "Remove --eval-*."
        )
    samples: list[list[Any]] = data_source.get_samples(args.rollout_batch_size)
    return samples
