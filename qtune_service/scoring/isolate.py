"""Find the samples that an engine cannot score, and score all the others.

A group that fails is halved until the failing samples stand alone: about 2 k log2(n) extra calls for k poison samples
among n. An engine that is dead fails for every sample, which is no sample's fault, so before a sample is blamed the
engine must score a trivial one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtune_service.errors import EngineError, QTuneError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.scorer import InterruptedScoring, Scorer, Watch, never


def score_isolating(scorer: Scorer, samples: Sequence[Sample], watch: Watch = never) -> list[TokenScores | str]:
    """Score samples in the order given; a sample that cannot be scored yields the reason as a string.

    Raises EngineError where the engine, and not a sample, is at fault; InterruptedScoring where `watch` asks to stop.
    """
    if not samples:
        return []
    try:
        return list(scorer.score(samples, watch))
    except (EngineError, InterruptedScoring):
        raise  # the engine itself says that it cannot go on
    except Exception as error:  # noqa: BLE001 - an engine raises whatever its model raises
        if len(samples) == 1:
            _check_alive(scorer, error)
            return [_reason(error)]
    middle = len(samples) // 2
    # Parts of a call run to their end: their indices are not the call's, so what they had at a stop could not be kept.
    return score_isolating(scorer, samples[:middle]) + score_isolating(scorer, samples[middle:])


def _check_alive(scorer: Scorer, failure: Exception) -> None:
    """Score a two-token sample, which no working engine refuses."""
    probe = Sample(input_ids=np.zeros(2, np.int32), loss_mask=np.array([0, 1], np.int8))
    try:
        scorer.score([probe])
    except Exception as error:
        raise EngineError(
            f"The scoring engine is dead: it fails even for a trivial sample: {_reason(error)}",
            f"It was first seen to fail with: {_reason(failure)}",
        ) from error


def _reason(error: Exception) -> str:
    """First line of an error's message, with its type where the error is not one of ours."""
    text = str(error).strip().partition("\n")[0]
    return text if isinstance(error, QTuneError) else f"{type(error).__name__}: {text}".rstrip(": ")
