"""Q-Tuning inside a training loop: prune every batch with the current model.

pruner = QTuningPruner(sample_keep_ratio=0.5, token_keep_ratio=0.7)
step = pruner.prune(model, batch)
loss = step.loss(model(step.batch["input_ids"]).logits)
"""

from qtune_service.training.arguments import QTuningArguments, add_q_tuning_arguments, q_tuning_arguments
from qtune_service.training.metrics import JsonlRecords, StepRecord, TensorBoardRecords
from qtune_service.training.pruner import QTuningPruner
from qtune_service.training.step import Choice, PrunedStep, next_token_loss
from qtune_service.training.token_scores import vocab_parallel_scores

__all__ = [
    "Choice",
    "JsonlRecords",
    "PrunedStep",
    "QTuningArguments",
    "QTuningPruner",
    "StepRecord",
    "TensorBoardRecords",
    "add_q_tuning_arguments",
    "next_token_loss",
    "q_tuning_arguments",
    "vocab_parallel_scores",
]
