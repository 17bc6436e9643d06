"""slime's plug-in points, by dotted path and without a patch.

--rollout-data-postprocess-path qtune_service.training.slime.postprocess     prune each rollout as it is trained on
--data-source-path qtune_service.training.slime.PrunedDataSource             train on a job's pruned output
--rollout-function-path qtune_service.training.slime.generate_rollout        (with it: its rows are tokens already)
"""

from qtune_service.training.slime.data_source import PrunedDataSource, generate_rollout
from qtune_service.training.slime.hook import postprocess

__all__ = ["PrunedDataSource", "generate_rollout", "postprocess"]
