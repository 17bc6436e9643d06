"""Read the training flags of a turn.

A flag is true or false, or 0 or 1. An assistant turn is trained if none of its flags excludes it. A mask cannot
represent a weight between 0 and 1, so such a weight is an error. `training_detail` (axolotl: `train_detail`) excludes
ranges of characters; its offsets are those of the content, and `end_offset` is the last character of a range.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from qtune_service.ingest.records import Range, RecordError

FLAGS = (
    *("loss", "train", "weight", "step_loss_mask", "loss_mask", "loss_weight", "trainable", "training"),
    "train_on_turn",
)
NEGATED_FLAGS = ("masked",)
RANGES = ("training_detail", "train_detail")
ALL = frozenset({*FLAGS, *NEGATED_FLAGS, *RANGES})


def read_flag(turn: Mapping[str, Any], where: str) -> bool | None:
    """Return whether the flags of a turn let it be trained; None without a flag. Raises RecordError."""
    trained: bool | None = None
    for name in (*FLAGS, *NEGATED_FLAGS):
        value = turn.get(name)
        if value is None:
            continue
        if not isinstance(value, int | float) or value not in (0, 1):
            raise RecordError("bad_flag", f"{where}: {name} must be true, false, 0 or 1, got {value!r}")
        trained = trained is not False and bool(value) != (name in NEGATED_FLAGS)
    return trained


def read_ranges(turn: Mapping[str, Any], content: str, where: str) -> tuple[Range, ...]:
    """Return the ranges of the content with a flag of their own. Raises RecordError."""
    for name in RANGES:
        if turn.get(name):
            return _ranges(turn[name], content, f"{where}: {name}")
    return ()


def _ranges(value: Any, content: str, where: str) -> tuple[Range, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise RecordError("bad_flag", f"{where} must be a list of ranges")
    ranges: list[Range] = []
    for item in value:
        fields = [item.get(key) for key in ("begin_offset", "end_offset", "train")] if isinstance(item, Mapping) else []
        if len(fields) != 3 or not all(isinstance(field, int) for field in fields) or fields[2] not in (0, 1):
            raise RecordError("bad_flag", f"{where} needs begin_offset, end_offset and train in each range")
        begin, end, train = (int(field or 0) for field in fields)
        if not 0 <= begin <= end < len(content) or (ranges and begin < ranges[-1][1]):
            what = f"characters {begin} to {end} are not in order within the {len(content)} of the content"
            raise RecordError("bad_flag", f"{where}: {what}")
        ranges.append((begin, end + 1, bool(train)))
    return tuple(ranges)
