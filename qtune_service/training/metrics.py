"""What each pruned step leaves behind: lines in the log, a line of JSON, scalars for TensorBoard.

Only the first rank logs and writes; all ranks know the same record.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.selection.plane import Quadrant, Thresholds

log = logging.getLogger("qtune_service.training")


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What pruning made of a global batch."""

    step: int
    num_samples: int
    """Samples of all ranks that could be chosen: those that were scored, or, in warm-up, have a trained token."""
    num_rejected: int
    """Samples without a trained token, or with a score that is not finite: not trained on."""
    target: int
    kept: int
    counts: Mapping[str, int]
    """Samples by quadrant, Q1 to Q4; all 0 in warm-up."""
    thresholds: Thresholds
    """In warm-up there are none: all are NaN."""
    tokens_before: int
    """Trained tokens of the population."""
    tokens_after: int
    """Of these, the ones left in the loss."""
    is_warmup: bool = False
    """Whether random samples were kept in place of the method's, and nothing was scored."""
    seconds: float = 0.0
    """Time of this rank for scoring, choosing and rebuilding."""
    drift: Mapping[str, int] = field(default_factory=dict)
    """Samples that were seen before, by their quadrants then and now, as `Q1>Q4`."""

    def to_json(self) -> dict[str, Any]:
        """Plain data. Thresholds that are not finite (no sample lies beyond, or there are none) are null."""
        edges = {name: value if np.isfinite(value) else None for name, value in asdict(self.thresholds).items()}
        fields: dict[str, Any] = {**asdict(self), "thresholds": edges}
        return fields

    def scalars(self) -> dict[str, float]:
        """Finite numbers by name, to plot over steps."""
        moved = {pair: count for pair, count in self.drift.items() if pair[:2] != pair[3:]}
        found: dict[str, float] = {
            "kept_share": self.kept / max(self.num_samples, 1),
            "token_share": self.tokens_after / max(self.tokens_before, 1),
            "rejected": self.num_rejected,
            "seconds": self.seconds,
            **{f"thresholds/{name}": value for name, value in asdict(self.thresholds).items() if np.isfinite(value)},
        }
        if not self.is_warmup:
            found |= {f"quadrants/{label}": count for label, count in self.counts.items()}
        if self.drift:
            found["drift/moved_share"] = sum(moved.values()) / sum(self.drift.values())
            found |= {f"drift/{pair}": count for pair, count in moved.items()}
        return found


RecordSink = Callable[[StepRecord], None]


def log_step(record: StepRecord, warmup_steps: int) -> None:
    """The two lines that users of Q-Tuning know; in warm-up one that says so."""
    if record.is_warmup:
        at = (record.step + 1, warmup_steps, record.kept, record.num_samples)
        log.info("[Q-Tuning] Warm-up step %d of %d: kept %d/%d samples at random", *at)
        return
    log.info("[Q-Tuning] Quadrant distribution: %s", dict(record.counts))
    share = record.kept / max(record.num_samples, 1)
    log.info("[Q-Tuning] Kept %d/%d samples (%.1f%%)", record.kept, record.num_samples, 100 * share)


class JsonlRecords:
    """Appends each record to a file, one JSON object a line."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: StepRecord) -> None:
        """Append."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_json(), allow_nan=False) + "\n")


class TensorBoardRecords:
    """Writes each record as scalars below `q_tuning/`. writer: a torch.utils.tensorboard.SummaryWriter."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, record: StepRecord) -> None:
        """Write."""
        for name, value in record.scalars().items():
            self._writer.add_scalar(f"q_tuning/{name}", value, record.step)


class Drift:
    """Remembers each sample's last quadrant by a number that stands for it."""

    def __init__(self) -> None:
        self._last: dict[float, int] = {}

    def state(self) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """What is remembered: numbers (S,) and quadrants (S,), 9 bytes a sample."""
        keys, labels = self._last.keys(), self._last.values()
        return np.fromiter(keys, np.float64, len(keys)), np.fromiter(labels, np.int8, len(labels))

    def restore(self, keys: NDArray[np.float64], labels: NDArray[np.int8]) -> None:
        """Remember these in place of what was."""
        self._last = dict(zip(keys.tolist(), labels.tolist(), strict=True))

    def moves(self, keys: NDArray[np.float64], labels: NDArray[np.int8]) -> dict[str, int]:
        """Counts by quadrant then and now of samples (S,) that were seen before; the others are remembered."""
        counts: dict[str, int] = {}
        for key, label in zip(keys.tolist(), labels.tolist(), strict=True):
            if (before := self._last.get(key)) is not None:
                pair = f"{Quadrant(before).name}>{Quadrant(label).name}"
                counts[pair] = counts.get(pair, 0) + 1
            self._last[key] = label
        return dict(sorted(counts.items()))
