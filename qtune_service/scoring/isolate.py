"""Find the samples that an engine cannot score, and score all the others.

A group that fails is halved until the failing samples stand alone: about 2 k log2(n) extra calls for k poison samples
among n. An engine that is dead fails for every sample, which is no sample's fault: it is told from poison by one
sample of the group that did score, or, where all failed, by whether the engine still scores a minimal sample.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from qtune_service.core.metrics import Sample, TokenScores
from qtune_service.errors import EngineError
from qtune_service.scoring.base import Scorer


def score_isolating(scorer: Scorer, samples: Sequence[Sample]) -> list[TokenScores | str]:
    """Score samples in the order given; a sample that cannot be scored yields the reason as a string.

    Raises EngineError where the engine, and not a sample, is at fault.
    """
    results: list[TokenScores | str] = []
    _score(scorer, samples, results)
    reasons = [result for result in results if isinstance(result, str)]
    if reasons and len(reasons) == len(results):
        _check_alive(scorer, reasons)
    return results


def _score(scorer: Scorer, samples: Sequence[Sample], results: list[TokenScores | str]) -> None:
    if not samples:
        return
    try:
        results.extend(scorer.score(samples))
    except EngineError:
        raise  # the engine itself says that it cannot go on
    except Exception as error:  # noqa: BLE001 - an engine raises whatever its model does; it becomes the sample's reason
        if len(samples) == 1:
            results.append(_reason(error))
            return
        middle = len(samples) // 2
        _score(scorer, samples[:middle], results)
        _score(scorer, samples[middle:], results)


def _check_alive(scorer: Scorer, reasons: Sequence[str]) -> None:
    """Score a two-token sample, which no working engine refuses."""
    probe = Sample(input_ids=np.zeros(2, np.int32), loss_mask=np.array([0, 1], np.int8))
    try:
        scorer.score([probe])
    except Exception as error:
        raise EngineError(
            f"The scoring engine fails for every sample, even a trivial one: {_reason(error)}",
            f"The first of {len(reasons)} failures was: {reasons[0]}",
        ) from error


def _reason(error: Exception) -> str:
    """First line of an error's message, with its type where that says more."""
    text = str(error).strip().partition("\n")[0]
    return text if type(error).__module__.startswith("qtune_service.") else f"{type(error).__name__}: {text}".rstrip(": ")
