"""Hook of slime before it trains on a rollout: prune by the log-probs and entropies that slime has computed.

slime splits a rollout over its data-parallel ranks and packs each rank's rows into micro-batches before it calls the
hook, so rows cannot be removed. The loss mask of a dropped row becomes 0, as slime does with `remove_sample`, and the
denominators of its loss (`rollout_mask_sums`) are summed again over the ranks that share a rollout id. The loss stays a
mean over all rows of a step, including dropped ones. With --calculate-per-token-loss it is a mean over kept tokens.

The population is the whole rollout, independent of its split into optimizer steps. Only the last pipeline stage has
scores, and only its masks reach the loss. Tensor-parallel ranks hold the same scores and decide the same.
Context-parallel ranks hold parts of each row, which slime's own function gathers.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from types import FrameType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.training.arguments import QTuningArguments, q_tuning_arguments
from qtune_service.training.distributed import Ranks
from qtune_service.training.pruner import QTuningPruner

NEEDED = {
    "log_probs": "Remove --disable-compute-advantages-and-returns and --use-rollout-logprobs (or add "
    "--get-mismatch-metrics), and train with --loss-type sft_loss.",
    "entropy": "Add --use-rollout-entropy.",
}


def postprocess(args: Any, rollout_id: int | None = None, rollout_data: dict[str, Any] | None = None) -> None:
    """Mask the tokens that Q-Tuning drops in this rank's part of a rollout, in place.

    `args` has the attributes of `add_q_tuning_arguments`. Without `enable_q_tuning`, naming the hook enables it. Older
    versions of slime pass `args` alone: then the caller's `rollout_data` is used.
    """
    arguments = _arguments(args)
    if arguments is None:
        return
    frame = inspect.currentframe()
    if rollout_data is None:
        rollout_id, rollout_data = _of_caller(frame.f_back if frame else None)
    from megatron.core import mpu

    if not mpu.is_pipeline_last_stage():
        return
    _check(args, rollout_data)
    group = mpu.get_data_parallel_group(with_context_parallel=False)
    is_first = mpu.get_tensor_model_parallel_rank() == 0 and mpu.get_context_parallel_rank() == 0
    pruner = QTuningPruner(arguments, group=group, is_quiet=not is_first)
    pruner.step = rollout_id or 0
    device = rollout_data["log_probs"][0].device
    masks = _pruned_masks(args, pruner, rollout_data, mpu.get_context_parallel_world_size(), device)
    _write(rollout_data, masks, Ranks.of(group, device))


def _pruned_masks(
    args: Any, pruner: QTuningPruner, data: dict[str, Any], cp_size: int, device: torch.device
) -> list[NDArray[np.int8]]:
    """Return the final masks of this rank's rows, (response length,) each."""
    lengths = list(zip(data["total_lengths"], data["response_lengths"], strict=True))
    leads = [
        int(total > response) for total, response in lengths
    ]  # the last prompt token predicts the first response token
    nll, entropy = (
        [
            np.concatenate((np.full(lead, np.nan), sign * row.detach().double().cpu().numpy()))
            for lead, row in zip(leads, _whole(args, data[name], lengths, cp_size), strict=True)
        ]
        for name, sign in (("log_probs", -1.0), ("entropy", 1.0))
    )
    masks = [
        np.concatenate((np.zeros(lead, np.int8), _array(m))) for lead, m in zip(leads, data["loss_masks"], strict=True)
    ]
    choice = pruner.prune_scores(nll, entropy, masks, device=device)
    return [mask[lead:] for lead, mask in zip(leads, choice.loss_masks, strict=True)]


def _whole(args: Any, rows: Sequence[torch.Tensor], lengths: list[tuple[int, int]], cp_size: int) -> list[torch.Tensor]:
    """Return the values of whole responses, also under context parallelism."""
    if cp_size == 1:
        return list(rows)
    if getattr(args, "qkv_format", "thd") != "thd":
        raise SpecError(
            "slime splits rows in the format bshd over ranks", "Use --qkv-format thd with context parallelism."
        )
    from slime.backends.megatron_utils.cp_utils import all_gather_with_cp

    return [all_gather_with_cp(row, total, response) for row, (total, response) in zip(rows, lengths, strict=True)]


def _write(data: dict[str, Any], masks: list[NDArray[np.int8]], ranks: Ranks) -> None:
    """Replace the masks and the denominators derived from them."""
    for place, mask in enumerate(masks):
        data["loss_masks"][place] = _like(data["loss_masks"][place], mask)
    if "rollout_mask_sums" not in data:  # older versions divide by the sum of each mask
        return
    ids = np.array([int(each) for each in data["rollout_ids"]], np.int64)
    mine = np.stack((ids, np.array([mask.sum() for mask in masks], np.int64)), 1)
    every = np.concatenate(ranks.gather(mine))
    names, place_of = np.unique(every[:, 0], return_inverse=True)
    totals = np.bincount(place_of, every[:, 1], len(names)).astype(np.int64)
    data["rollout_mask_sums"] = _like(data["rollout_mask_sums"], totals[np.searchsorted(names, ids)])


def _check(args: Any, data: dict[str, Any]) -> None:
    for name, hint in NEEDED.items():
        if not data.get(name):
            raise SpecError(f"slime's rollout has no {name}, which Q-Tuning requires", hint)
    for name in ("rollout_temperature", "rollout_top_p"):
        if getattr(args, name, 1.0) != 1.0:
            raise SpecError(
                f"{name} is {getattr(args, name)}: slime's log_probs are not those of the model itself",
                f"Train with --{name.replace('_', '-')} 1.",
            )


def _arguments(args: Any) -> QTuningArguments | None:
    return q_tuning_arguments(SimpleNamespace(**{"enable_q_tuning": True, **vars(args)}))


def _of_caller(frame: FrameType | None) -> tuple[int, dict[str, Any]]:
    """Return the rollout of a caller that passes `args` alone."""
    known = frame.f_locals if frame else {}
    if not isinstance(known.get("rollout_data"), dict):
        raise SpecError(
            "this version of slime does not pass the rollout to the hook",
            "The hook is called as (args, rollout_id, rollout_data), or as (args) by a caller with `rollout_data`.",
        )
    return int(known.get("rollout_id", 0)), known["rollout_data"]


def _array(values: Any) -> NDArray[np.int8]:
    return np.asarray(values.cpu() if isinstance(values, torch.Tensor) else values).astype(np.int8)


def _like(old: Any, new: NDArray[Any]) -> Any:
    """Return new numbers in the form of the old ones: a tensor of the same type and device, or a list."""
    return torch.as_tensor(new).to(old) if isinstance(old, torch.Tensor) else new.tolist()
