"""Plug-in points of slime, by dotted path and without a patch.

--rollout-data-postprocess-path qtune_service.training.slime.postprocess     prune each rollout before training
--data-source-path qtune_service.training.slime.PrunedDataSource             train on a job's pruned output
--rollout-function-path qtune_service.training.slime.generate_rollout        (with it: its rows already are tokens)
"""

from qtune_service.training.slime.data_source import PrunedDataSource, generate_rollout
from qtune_service.training.slime.hook import postprocess

__all__ = ["PrunedDataSource", "generate_rollout", "postprocess"]
