"""Read the batches of trainers as concatenated rows, and write them back with fewer rows and new masks.

Three layouts:
- padded: `input_ids` (B, T) with `attention_mask` (B, T), padded on either side. Written back padded on the right.
- packed: concatenated rows in one line of `input_ids` (1, L), separated by `position_ids` that restart at 0, or by
  `cu_seqlens` / `cu_seq_lens_q`. Written back packed with the same keys, including `seq_idx` (the row of each token).
- ragged: `input_ids` as a list of lists or of 1-D tensors. Written back in the same form.
Trained tokens come from `labels` (-100 is not trained, unshifted as in transformers), from `loss_mask`, or from both
if a token is trained in both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtune_service.errors import DataError
from qtune_service.selection.token_masks import protected_tokens, trainable

IGNORED = -100
CUMULATIVE = ("cu_seqlens", "cu_seq_lens_q", "cu_seq_lens_k")
LONGEST = ("max_length_q", "max_length_k")
ROW_OF = "seq_idx"
KNOWN = frozenset({"input_ids", "attention_mask", "labels", "loss_mask", "position_ids", ROW_OF, *CUMULATIVE, *LONGEST})

Batch = Mapping[str, Any]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """S concatenated rows."""

    input_ids: NDArray[np.int64]  # (L,)
    loss_mask: NDArray[np.int8]  # (L,) 0 at each row's first position
    offsets: NDArray[np.int64]  # (S + 1,)

    @classmethod
    def of(cls, input_ids: NDArray[np.int64], loss_mask: NDArray[Any], lengths: NDArray[np.int64]) -> Rows:
        """Build rows from their lengths (S,)."""
        offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
        return cls(input_ids, trainable(loss_mask.astype(np.int8), offsets), offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """Concatenate the rows of several batches."""
        lengths = np.concatenate([part.lengths for part in parts])
        ids, masks = (np.concatenate([getattr(part, name) for part in parts]) for name in ("input_ids", "loss_mask"))
        return cls.of(ids, masks, lengths)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Return the number of tokens of each row, (S,)."""
        return np.diff(self.offsets)

    @property
    def num_trained(self) -> NDArray[np.int64]:
        """Return the number of trained tokens of each row, (S,)."""
        return self.sums(self.loss_mask != 0)

    def protected(self, stop_ids: Collection[int]) -> NDArray[np.bool_]:
        """Return which tokens (L,) end a trained span or are trained stop tokens."""
        return protected_tokens(self.input_ids, self.loss_mask, stop_ids)

    def sums(self, flags: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return how many tokens of each row (S,) have a flag (L,)."""
        return np.diff(np.concatenate(([0], np.cumsum(flags, dtype=np.int64)))[self.offsets])

    def take(self, index: NDArray[np.integer[Any]]) -> Rows:
        """Return a selection of rows in the given order."""
        index = np.asarray(index, np.int64)
        places = run_indices(self.offsets[index], self.lengths[index])
        return Rows.of(self.input_ids[places], self.loss_mask[places], self.lengths[index])

    def with_mask(self, loss_mask: NDArray[np.int8]) -> Rows:
        """Return the rows with another mask (L,)."""
        return Rows(self.input_ids, loss_mask, self.offsets)


def run_indices(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the indices of consecutive runs: starts (S,) and lengths (S,) -> (sum of lengths,)."""
    before = np.cumsum(lengths) - lengths
    places: NDArray[np.int64] = np.repeat(starts - before, lengths) + np.arange(int(lengths.sum()))
    return places


@dataclass(frozen=True, slots=True)
class Layout:
    """Layout of a batch: the function that writes rows, and the device."""

    write: Callable[[Rows], dict[str, Any]]
    device: torch.device


def read_batch(batch: Batch) -> tuple[Rows, Layout]:
    """Return the rows and the layout of a batch. Raises DataError with the invalid key."""
    if "input_ids" not in batch:
        raise DataError(
            "the batch has no `input_ids`", f"Pass input_ids and labels (or loss_mask); it has {sorted(batch)}."
        )
    if unknown := sorted(key for key in batch if key not in KNOWN and batch[key] is not None):
        raise DataError(
            f"the batch has {', '.join(unknown)}, which pruning cannot assign to rows",
            "Remove them from the batch, or use `prune_scores` and select their rows yourself.",
        )
    ids = batch["input_ids"]
    if not isinstance(ids, torch.Tensor):
        return _read_ragged(batch)
    if ids.ndim != 2:
        raise DataError(f"input_ids has shape {tuple(ids.shape)}", "Pass (rows, tokens), or (1, tokens) where packed.")
    is_packed = any(batch.get(key) is not None for key in CUMULATIVE) or (
        ids.shape[0] == 1 and batch.get("position_ids") is not None
    )
    return _read_packed(batch) if is_packed else _read_padded(batch)


# --- padded


def _read_padded(batch: Batch) -> tuple[Rows, Layout]:
    ids = _array(batch["input_ids"])
    mask = _loss_mask(batch, ids.shape)
    attention = batch.get("attention_mask")
    real = np.ones(ids.shape, np.bool_) if attention is None else _array(attention) != 0
    if real.shape != ids.shape:
        raise DataError(f"attention_mask has shape {real.shape}, input_ids {ids.shape}", "Pass a mask of 0 and 1.")
    _check_positions(batch.get("position_ids"), real)
    padding = ids[~real]
    pad_id = int(padding[0]) if len(padding) else 0
    rows = Rows.of(ids[real], mask[real], real.sum(1).astype(np.int64))
    keys, device = frozenset(key for key in batch if batch[key] is not None), batch["input_ids"].device
    return rows, Layout(lambda chosen: _padded(chosen, keys | {"attention_mask"}, device, pad_id), device)


def _check_positions(position_ids: Any, real: NDArray[np.bool_]) -> None:
    """Raise DataError if a line of several holds more than one row, because the boundary would be lost."""
    if position_ids is None:
        return
    found = np.broadcast_to(_array(position_ids), real.shape)
    both = real[:, 1:] & real[:, :-1]
    if (np.diff(found, axis=1) != 1)[both].any():
        raise DataError(
            "position_ids of a padded batch restart within a line",
            "Pack into one line, input_ids of shape (1, tokens): with TRL by padding_free=True or packing with `bfd`.",
        )


def _padded(rows: Rows, keys: frozenset[str], device: torch.device, pad_id: int) -> dict[str, Any]:
    width = int(rows.lengths.max(initial=1))
    real = np.arange(width) < rows.lengths[:, None]  # (S, width)
    ids, mask = np.full(real.shape, pad_id, np.int64), np.zeros(real.shape, np.int8)
    ids[real], mask[real] = rows.input_ids, rows.loss_mask
    made = {
        "input_ids": ids,
        "attention_mask": real.astype(np.int64),
        "position_ids": np.broadcast_to(np.arange(width), real.shape) * real,
    }
    return _tensors(made, ids, mask, keys, device)


# --- packed


def _read_packed(batch: Batch) -> tuple[Rows, Layout]:
    ids = _array(batch["input_ids"]).reshape(-1)
    mask = _loss_mask(batch, batch["input_ids"].shape).reshape(-1)
    if batch["input_ids"].shape[0] != 1:
        raise DataError("a packed batch has more than one line", "Pack into input_ids of shape (1, tokens).")
    lengths = _packed_lengths(batch, len(ids))
    attention = batch.get("attention_mask")
    real = np.ones(len(ids), np.bool_) if attention is None else _array(attention).reshape(-1) != 0
    ends = np.concatenate(([0], np.cumsum(real)))[np.concatenate(([0], np.cumsum(lengths)))]
    held = np.diff(ends)
    rows = Rows.of(ids[real], mask[real], held[held > 0].astype(np.int64))
    keys, device = frozenset(key for key in batch if batch[key] is not None), batch["input_ids"].device
    return rows, Layout(lambda chosen: _packed(chosen, keys, device), device)


def _packed_lengths(batch: Batch, length: int) -> NDArray[np.int64]:
    found = next((batch[key] for key in CUMULATIVE if batch.get(key) is not None), None)
    if found is not None:
        bounds = _array(found).reshape(-1).astype(np.int64)
        if len(bounds) and bounds[-1] < length:  # padding follows
            bounds = np.append(bounds, length)
        if bounds[0] != 0 or bounds[-1] != length or (np.diff(bounds) < 0).any():
            raise DataError(
                f"cumulative lengths of a packed batch end at {bounds[-1]}, it has {length} tokens",
                "They must rise from 0 to the number of tokens.",
            )
        return np.diff(bounds)
    starts = np.flatnonzero(_array(batch["position_ids"]).reshape(-1) == 0)
    if not len(starts) or starts[0] != 0:
        raise DataError("position_ids of a packed batch do not start at 0", "They must restart at 0 for each row.")
    return np.diff(np.append(starts, length))


def _packed(rows: Rows, keys: frozenset[str], device: torch.device) -> dict[str, Any]:
    places = run_indices(np.zeros(len(rows), np.int64), rows.lengths)
    made = {
        "input_ids": rows.input_ids[None],
        "attention_mask": np.ones((1, len(rows.input_ids)), np.int64),
        "position_ids": places[None],
    }
    found = _tensors(made, rows.input_ids[None], rows.loss_mask[None], keys | {"position_ids"}, device)
    for key in keys.intersection(CUMULATIVE):
        found[key] = torch.as_tensor(rows.offsets.astype(np.int32), device=device)
    for key in keys.intersection(LONGEST):
        found[key] = int(rows.lengths.max(initial=0))
    if ROW_OF in keys:
        row_of = np.repeat(np.arange(len(rows), dtype=np.int32), rows.lengths)[None]
        found[ROW_OF] = torch.as_tensor(row_of, device=device)
    return found


# --- ragged


def _read_ragged(batch: Batch) -> tuple[Rows, Layout]:
    ids = [_array(row).astype(np.int64) for row in batch["input_ids"]]
    lengths = np.array([len(row) for row in ids], np.int64)
    flat_ids = np.concatenate([np.empty(0, np.int64), *ids])
    given = [name for name in ("labels", "loss_mask") if batch.get(name) is not None]
    if not given:
        raise DataError("the batch has neither `labels` nor `loss_mask`", "Pass one of them.")
    trained = np.ones(len(flat_ids), np.bool_)
    for name in given:
        values = [_array(row) for row in batch[name]]
        if [len(row) for row in values] != lengths.tolist():
            raise DataError(f"rows of {name} and of input_ids differ in length", "Pass one entry a token.")
        flat = np.concatenate([np.empty(0, np.int64), *values])
        if name == "labels":
            _check_labels(flat_ids, flat)
        trained &= flat != (IGNORED if name == "labels" else 0)
    rows = Rows.of(flat_ids, trained, lengths)
    first = next(iter(batch["input_ids"]), None)
    as_tensors, device = isinstance(first, torch.Tensor), getattr(first, "device", torch.device("cpu"))
    keys = frozenset(key for key in batch if batch[key] is not None)
    return rows, Layout(lambda chosen: _ragged(chosen, keys, device if as_tensors else None), device)


def _ragged(rows: Rows, keys: frozenset[str], device: torch.device | None) -> dict[str, Any]:
    labels = np.where(rows.loss_mask != 0, rows.input_ids, IGNORED)
    made = {
        "input_ids": rows.input_ids,
        "labels": labels,
        "loss_mask": rows.loss_mask.astype(np.int64),
        "attention_mask": np.ones(len(labels), np.int64),
        "position_ids": run_indices(np.zeros(len(rows), np.int64), rows.lengths),
    }
    found: dict[str, Any] = {}
    for key in (keys & made.keys()) | {"labels"}:
        parts = np.split(made[key], rows.offsets[1:-1]) if len(rows) else []
        found[key] = [torch.as_tensor(p, device=device) if device is not None else p.tolist() for p in parts]
    return found


# --- shared by the layouts


def _tensors(
    made: Mapping[str, NDArray[Any]],
    ids: NDArray[np.int64],
    mask: NDArray[np.int8],
    keys: frozenset[str],
    device: torch.device,
) -> dict[str, Any]:
    """Return the keys of the batch as tensors, and always labels."""
    labels = np.where(mask != 0, ids, IGNORED)
    every = {**made, "labels": labels, "loss_mask": mask.astype(np.int64)}
    wanted = (keys & every.keys()) | {"input_ids", "labels"}
    return {key: torch.as_tensor(np.ascontiguousarray(every[key]), device=device) for key in sorted(wanted)}


def _loss_mask(batch: Batch, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return the trained positions of a tensor batch. With both labels and loss_mask, both must train a token."""
    found = np.ones(shape, np.bool_)
    labels, mask = batch.get("labels"), batch.get("loss_mask")
    if labels is None and mask is None:
        raise DataError("the batch has neither `labels` nor `loss_mask`", "Pass one of them.")
    for name, value, ignored in (("labels", labels, IGNORED), ("loss_mask", mask, 0)):
        if value is not None:
            array = _array(value)
            if array.shape != tuple(shape):
                raise DataError(f"{name} has shape {array.shape}, input_ids {tuple(shape)}", "Pass one entry a token.")
            found &= array != ignored
    if labels is not None:
        _check_labels(_array(batch["input_ids"]), _array(labels))
    return found


def _check_labels(ids: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
    """Raise DataError for labels that differ from the tokens at the same positions."""
    if ((labels != IGNORED) & (labels != ids)).any():
        raise DataError(
            "labels differ from input_ids at the same positions",
            "Pass unshifted labels, as in transformers: labels[t] is input_ids[t] or -100. Models shift them.",
        )


def _array(value: Any) -> NDArray[Any]:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
