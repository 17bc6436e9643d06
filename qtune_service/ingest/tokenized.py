"""Parse tokenized records: `input_ids` with masks, labels, or both.

Nothing is repaired. Lists of different lengths, padding, packed rows, or labels that differ from the tokens (such as
labels shifted by one) are errors, because their scores would belong to other text. If several masks or labels are
present, as in our own output, they must agree. Position 0 has no prediction and is never trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.ingest.fields import MASKS
from qtune_service.ingest.records import RecordError, Tokenized

IGNORE_LABEL = -100
INT32_MAX = np.iinfo(np.int32).max


def parse_tokens(record: Mapping[str, Any]) -> Tokenized:
    """Parse one record of the tokenized format. Raises RecordError."""
    ids = _integers(record.get("input_ids"), "input_ids")
    if len(ids) and (ids.min() < 0 or ids.max() > INT32_MAX):
        raise RecordError("bad_token_id", f"input_ids must be between 0 and {INT32_MAX}, got {ids.min()}..{ids.max()}")
    masks = {name: _mask(record[name], ids, name) for name in MASKS if record.get(name) is not None}
    if record.get("labels") is not None:
        masks["labels"] = _label_mask(record["labels"], ids)
    if not masks:
        raise RecordError("missing_field", f"input_ids need a column labels, {' or '.join(MASKS)} beside them")
    mask = next(iter(masks.values()))
    if any(not np.array_equal(mask, other) for other in masks.values()):
        raise RecordError("mask_conflict", f"{' and '.join(masks)} disagree on what is trained")
    attention = record.get("attention_mask")
    if (
        attention is not None
        and not _same_length(_integers(attention, "attention_mask", allow_bool=True), ids, "attention_mask").all()
    ):
        raise RecordError("padded", "attention_mask holds zeros; remove the padding from input_ids")
    positions = record.get("position_ids")
    if positions is not None and not np.array_equal(_integers(positions, "position_ids"), np.arange(len(ids))):
        raise RecordError("packed", "position_ids restart or skip; give each packed sample a record of its own")
    return Tokenized(ids.astype(np.int32), mask)


def _mask(value: Any, ids: NDArray[np.int64], name: str) -> NDArray[np.int8]:
    mask = _same_length(_integers(value, name, allow_bool=True), ids, name)
    if not np.isin(mask, (0, 1)).all():
        raise RecordError("bad_type", f"{name} must hold 0 and 1 only")
    return _untrain_first(mask)


def _label_mask(value: Any, ids: NDArray[np.int64]) -> NDArray[np.int8]:
    labels = _same_length(_integers(value, "labels"), ids, "labels")
    trained = labels != IGNORE_LABEL
    if not np.array_equal(labels[trained], ids[trained]):
        raise RecordError("labels_mismatch", "labels differ from input_ids where they are trained; shifted labels?")
    return _untrain_first(trained)


def _untrain_first(mask: NDArray[Any]) -> NDArray[np.int8]:
    """Clear the mask at position 0, which has no prediction."""
    out = mask.astype(np.int8)
    out[:1] = 0
    return out


def _integers(value: Any, column: str, *, allow_bool: bool = False) -> NDArray[np.int64]:
    if value is None:
        raise RecordError("missing_field", f"no value in column {column!r}")
    if not isinstance(value, Sequence | np.ndarray) or isinstance(value, str | bytes):
        raise RecordError("bad_type", f"{column} must be a list of integers, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise RecordError("bad_type", f"{column} must be a flat list of integers") from error
    if len(value) == 0:
        return np.empty(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in ("iub" if allow_bool else "iu"):
        raise RecordError("bad_type", f"{column} must be a flat list of integers")
    return array.astype(np.int64)


def _same_length(values: NDArray[np.int64], ids: NDArray[np.int64], column: str) -> NDArray[np.int64]:
    if len(values) != len(ids):
        raise RecordError("length_mismatch", f"{column} has {len(values)} entries, input_ids {len(ids)}")
    return values
