"""Enable Q-Tuning in transformers.Trainer and its subclasses, such as TRL's SFTTrainer, by one line.

    trainer = SFTTrainer(...)
    enable_q_tuning(trainer, QTuningArguments(sample_keep_ratio=0.5))
    trainer.train()

The Trainer collects all micro-batches of an optimizer step before it runs the first one, counts their trained tokens
over all ranks, and divides each micro-batch's loss by that number. The step is pruned at this point: the number of
micro-batches stays the same, with the kept rows and the remaining number of tokens. So accumulation, mixed precision
(scoring uses the same wrapped forward), packing, gradient checkpointing and several ranks work as before. Evaluation is
not affected. A step's selection depends only on its batches, the weights and the step number, which a resumed run
restores. The drift of samples is saved in the checkpoint.

The trainer's class is replaced by a subclass, so methods of the user's own subclass stay in place.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, get_last_checkpoint

from qtune_service.errors import SpecError
from qtune_service.training.arguments import QTuningArguments
from qtune_service.training.metrics import StepRecord, log
from qtune_service.training.pruner import QTuningPruner

STATE = "q_tuning.pt"
"""File of the pruner's state in a checkpoint."""


class QTuningMixin:
    """Overrides of a Trainer. `enable_q_tuning` puts this class before the trainer's own class."""

    q_tuning: QTuningPruner
    q_tuning_record: StepRecord | None
    """Record of the latest step."""

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> tuple[list[Any], Any]:
        """Return the micro-batches of a step with the kept rows, and its trained tokens over all ranks."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)  # type: ignore[misc]
        if not batches:
            return batches, number
        self.q_tuning.step = self.state.global_step  # type: ignore[attr-defined]
        step = self.q_tuning.prune_step(self.model_wrapped, batches)  # type: ignore[attr-defined]
        self.q_tuning_record = step.record
        return step.batches, torch.tensor(max(step.num_tokens, 1), device=device)

    def train(self, resume_from_checkpoint: str | bool | None = None, *arguments: Any, **named: Any) -> Any:
        """Train as before. The drift of a checkpoint is restored."""
        folder = resume_from_checkpoint
        if folder is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[attr-defined]
        if folder:
            self._restore(Path(folder) / STATE)
        return super().train(resume_from_checkpoint, *arguments, **named)  # type: ignore[misc]

    def _restore(self, path: Path) -> None:
        if path.exists():
            self.q_tuning.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        else:
            log.warning("[Q-Tuning] %s does not exist: the drift of samples starts from scratch", path)

    def log(self, logs: dict[str, float], *arguments: Any, **named: Any) -> None:
        """Add the latest step's record to the logs: q_tuning/kept_share and more."""
        if "loss" in logs and self.q_tuning_record is not None:
            logs = logs | {f"q_tuning/{name}": value for name, value in self.q_tuning_record.scalars().items()}
        super().log(logs, *arguments, **named)  # type: ignore[misc]


class SavedState(TrainerCallback):  # type: ignore[misc]
    """Save the pruner's state in each checkpoint."""

    def __init__(self, pruner: QTuningPruner) -> None:
        self._pruner = pruner

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Write the state on the first rank. All ranks have the same state."""
        folder = Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        if state.is_world_process_zero and folder.is_dir():  # trials of a search are elsewhere and never resumed
            torch.save(self._pruner.state_dict(), folder / STATE)


def enable_q_tuning(trainer: Any, arguments: QTuningArguments | None = None, **options: Any) -> QTuningPruner:
    """Prune every training step of a trainer. Return the pruner.

    options: further options of QTuningPruner, such as `rule` and `records`. Raises SpecError if the trainer's loss
    would not be the loss of the kept tokens.
    """
    _check(trainer)
    arguments = arguments or QTuningArguments()
    if not arguments.stop_token_ids:
        arguments = replace(arguments, stop_token_ids=_stop_token_ids(trainer))
    pruner = QTuningPruner(arguments, **options)
    own = type(trainer)
    trainer.__class__ = type(f"QTuning{own.__name__}", (QTuningMixin, own), {})
    trainer.q_tuning, trainer.q_tuning_record = pruner, None
    trainer.add_callback(SavedState(pruner))
    return pruner


def _stop_token_ids(trainer: Any) -> tuple[int, ...]:
    """Return the tokens at which the model's generation stops, and the tokenizer's own."""
    tokenizer = getattr(trainer, "processing_class", None)
    tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # of a processor
    found: set[int] = set()
    for owner in (getattr(trainer.model, "generation_config", None), trainer.model.config, tokenizer):
        ids = getattr(owner, "eos_token_id", None)
        found.update(one for one in (ids if isinstance(ids, list | tuple) else [ids]) if isinstance(one, int))
    return tuple(sorted(found))


def _check(trainer: Any) -> None:
    """Raise SpecError for trainers that would not train on the kept tokens only."""
    args = trainer.args
    uses_number = trainer.model_accepts_loss_kwargs or trainer.compute_loss_func is not None
    parallel = [getattr(trainer, f"get_{kind}_size")() for kind in ("tp", "cp", "sp")]
    refused = {
        "Q-Tuning is already enabled on this trainer": (isinstance(trainer, QTuningMixin), "Enable it once."),
        "this model's loss does not use num_items_in_batch": (
            not uses_number or getattr(trainer, "loss_is_scaled_for_ga", None) is False,
            "Its loss is the mean of each micro-batch. Pass a compute_loss_func that divides by num_items_in_batch.",
        ),
        "average_tokens_across_devices is off": (
            args.world_size > 1 and not args.average_tokens_across_devices,
            "Ranks keep different numbers of tokens. Enable it, as by default.",
        ),
        "the model runs under DataParallel": (
            args.n_gpu > 1,
            "Start one process per GPU with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES to one GPU.",
        ),
        "the trainer splits rows or layers over ranks (tensor, context or sequence parallel)": (
            max(parallel) > 1,
            "Use DDP or FSDP2, or your own loop with vocab_parallel_scores and QTuningPruner.prune_scores.",
        ),
        "the trainer uses DeepSpeed, which was not tested with pruning": (
            bool(trainer.is_deepspeed_enabled),
            "Use FSDP2 (accelerate, fsdp_version 2).",
        ),
        "the model is an encoder-decoder": (
            bool(getattr(trainer.model.config, "is_encoder_decoder", False)),
            "Scores require the next-token predictions of a causal model.",
        ),
    }
    for message, (is_so, hint) in refused.items():
        if is_so:
            raise SpecError(message, hint)
