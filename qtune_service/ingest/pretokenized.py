"""Records that came as tokens: `input_ids` with `loss_mask`, or with `labels` where -100 is not trained.

Nothing is repaired: lists of different lengths, padding, or labels that are not the tokens themselves (a trainer's
own shift by one, for example) would give scores of something else, so they are errors. Where both a mask and
labels are there, as in our own output, they must agree. Position 0 has no prediction and is never trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qtune_service.ingest.records import RecordError, Tokenized

IGNORE_LABEL = -100
INT32_MAX = np.iinfo(np.int32).max


def parse_tokens(record: Mapping[str, Any]) -> Tokenized:
    """Read one record of the tokenized format."""
    ids = _integers(record.get("input_ids"), "input_ids")
    if len(ids) and (ids.min() < 0 or ids.max() > INT32_MAX):
        raise RecordError("bad_token_id", f"input_ids must lie in 0..{INT32_MAX}, got {ids.min()}..{ids.max()}")
    masks = [mask for mask in (_mask_column(record, ids), _label_column(record, ids)) if mask is not None]
    if not masks:
        raise RecordError("missing_field", "input_ids need a column loss_mask or labels beside them")
    if len(masks) == 2 and not np.array_equal(masks[0], masks[1]):
        raise RecordError("mask_conflict", "loss_mask and labels disagree on what is trained")
    attention = record.get("attention_mask")
    if attention is not None and not _same_length(_integers(attention, "attention_mask"), ids, "attention_mask").all():
        raise RecordError("padded", "attention_mask holds zeros; remove the padding from input_ids")
    return Tokenized(ids.astype(np.int32), masks[0])


def _mask_column(record: Mapping[str, Any], ids: NDArray[np.int64]) -> NDArray[np.int8] | None:
    if record.get("loss_mask") is None:
        return None
    mask = _same_length(_integers(record["loss_mask"], "loss_mask", allow_bool=True), ids, "loss_mask")
    if not np.isin(mask, (0, 1)).all():
        raise RecordError("bad_type", "loss_mask must hold 0 and 1 only")
    return _untrain_first(mask)


def _label_column(record: Mapping[str, Any], ids: NDArray[np.int64]) -> NDArray[np.int8] | None:
    if record.get("labels") is None:
        return None
    labels = _same_length(_integers(record["labels"], "labels"), ids, "labels")
    trained = labels != IGNORE_LABEL
    if not np.array_equal(labels[trained], ids[trained]):
        raise RecordError("labels_mismatch", "labels differ from input_ids where they are trained; shifted labels?")
    return _untrain_first(trained)


def _untrain_first(mask: NDArray[Any]) -> NDArray[np.int8]:
    """Position 0 has no prediction."""
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
