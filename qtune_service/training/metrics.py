"""Record each pruned step: log lines, JSON lines, and scalars for TensorBoard.

Only the first rank logs and writes. All ranks have the same record.
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
    """Result of pruning a global batch."""

    step: int
    num_samples: int
    """Candidate samples of all ranks: scored ones, or, in warm-up, those with a trained token."""
    num_rejected: int
    """Samples without a trained token or with a non-finite score, which are not trained on."""
    target: int
    kept: int
    counts: Mapping[str, int]
    """Samples by quadrant, Q1 to Q4; all 0 in warm-up."""
    thresholds: Thresholds
    """Thresholds; all NaN in warm-up."""
    tokens_before: int
    """Trained tokens of the population."""
    tokens_after: int
    """Trained tokens that remain in the loss."""
    is_warmup: bool = False
    """True if random samples were kept and nothing was scored."""
    seconds: float = 0.0
    """Time of this rank for scoring, selection and rebuilding."""
    drift: Mapping[str, int] = field(default_factory=dict)
    """Counts of samples seen before, by old and new quadrant, as `Q1>Q4`."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data. Non-finite thresholds (no sample beyond, or none at all) are null."""
        edges = {name: value if np.isfinite(value) else None for name, value in asdict(self.thresholds).items()}
        fields: dict[str, Any] = {**asdict(self), "thresholds": edges}
        return fields

    def scalars(self) -> dict[str, float]:
        """Return the finite numbers by name, for plotting."""
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
    """Log quadrants and kept samples; in warm-up, one line."""
    if record.is_warmup:
        at = (record.step + 1, warmup_steps, record.kept, record.num_samples)
        log.info("[Q-Tuning] Warm-up step %d of %d: kept %d/%d samples at random", *at)
        return
    log.info("[Q-Tuning] Quadrant distribution: %s", dict(record.counts))
    share = record.kept / max(record.num_samples, 1)
    log.info("[Q-Tuning] Kept %d/%d samples (%.1f%%)", record.kept, record.num_samples, 100 * share)


class JsonlRecords:
    """Append each record to a file as a JSON line."""

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._path.parent.mkdir(parents=True, exist_ok=True)

    def __call__(self, record: StepRecord) -> None:
        """Append a record."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record.to_json(), allow_nan=False) + "\n")


class TensorBoardRecords:
    """Write each record as scalars `q_tuning/...`. writer: a torch.utils.tensorboard.SummaryWriter."""

    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def __call__(self, record: StepRecord) -> None:
        """Write a record."""
        for name, value in record.scalars().items():
            self._writer.add_scalar(f"q_tuning/{name}", value, record.step)


class Drift:
    """Track the last quadrant of each sample by its content key."""

    def __init__(self) -> None:
        self._last: dict[float, int] = {}

    def state(self) -> tuple[NDArray[np.float64], NDArray[np.int8]]:
        """Return content keys (S,) and quadrants (S,): 9 bytes per sample."""
        keys, labels = self._last.keys(), self._last.values()
        return np.fromiter(keys, np.float64, len(keys)), np.fromiter(labels, np.int8, len(labels))

    def restore(self, keys: NDArray[np.float64], labels: NDArray[np.int8]) -> None:
        """Replace the tracked state."""
        self._last = dict(zip(keys.tolist(), labels.tolist(), strict=True))

    def moves(self, keys: NDArray[np.float64], labels: NDArray[np.int8]) -> dict[str, int]:
        """Count the seen samples (S,) by old and new quadrant, and track the new ones."""
        counts: dict[str, int] = {}
        for key, label in zip(keys.tolist(), labels.tolist(), strict=True):
            if (before := self._last.get(key)) is not None:
                pair = f"{Quadrant(before).name}>{Quadrant(label).name}"
                counts[pair] = counts.get(pair, 0) + 1
            self._last[key] = label
        return dict(sorted(counts.items()))
