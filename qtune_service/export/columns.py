"""What each trainer wants to see of a sample, made of the columns of pruned/. Row for row, on flat arrays.

Trainers differ in three things: which of mask and labels they read; whether a label stands beside its token (then the
model shifts) or beside the token before it (shifted already); and whether the mask covers the sample or its response.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.output.columns import Ragged, list_column, ragged


def torchtune(rows: pa.Table) -> pa.Table:
    """tokens, and mask: True where the loss ignores a token."""
    mask = ragged(rows["loss_mask"])
    return pa.table({"tokens": rows["input_ids"], "mask": list_column(mask.flat == 0, mask.offsets, pa.bool_())})


def verl(rows: pa.Table) -> pa.Table:
    """The four that verl's datasets give: input_ids, attention_mask, position_ids, loss_mask."""
    offsets = ragged(rows["input_ids"]).offsets
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return pa.table(
        {
            "input_ids": rows["input_ids"],
            "attention_mask": rows["attention_mask"],
            "position_ids": list_column(positions, offsets, pa.int32()),
            "loss_mask": rows["loss_mask"],
        }
    )


def nemo_automodel(rows: pa.Table) -> pa.Table:
    """input_ids without the last token, labels without the first: position t is to predict labels[t]."""
    ids, labels = ragged(rows["input_ids"]), ragged(rows["labels"])
    last = np.zeros(len(ids.flat), np.bool_)
    last[ids.offsets[1:] - 1] = True
    first = np.zeros(len(ids.flat), np.bool_)
    first[ids.offsets[:-1]] = True
    offsets = ids.offsets - np.arange(len(ids.offsets))
    return pa.table(
        {
            "input_ids": list_column(ids.flat[~last], offsets, pa.int32()),
            "labels": list_column(labels.flat[~first], offsets, pa.int32()),
            "attention_mask": list_column(np.ones(offsets[-1], np.int8), offsets, pa.int8()),
        }
    )


def slime(rows: pa.Table) -> pa.Table:
    """tokens, response_length, and loss_mask over the response, which begins at the first token that is trained on.

    That is where slime's own SFT rollout lets it begin. A response may hold turns of others, under zeros.
    """
    mask = ragged(rows["loss_mask"])
    firsts = first_trained(mask)
    lengths = np.diff(mask.offsets) - firsts
    in_response = np.arange(len(mask.flat)) >= np.repeat(mask.offsets[:-1] + firsts, np.diff(mask.offsets))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.table(
        {
            "tokens": rows["input_ids"],
            "response_length": pa.array(lengths, pa.int32()),
            "loss_mask": list_column(mask.flat[in_response], offsets, pa.int8()),
        }
    )


def first_trained(mask: Ragged) -> NDArray[np.int64]:
    """Place of each row's first 1 (S,); the row's length where there is none."""
    ones = np.flatnonzero(mask.flat)
    at = np.append(ones, len(mask.flat))[np.searchsorted(ones, mask.offsets[:-1])]
    firsts: NDArray[np.int64] = np.minimum(at, mask.offsets[1:]) - mask.offsets[:-1]
    return firsts
