"""scoring/choose_engine.py: an engine of the user's own is used, and not trusted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineError, SpecError
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.choose_engine import build_scorer
from qtune_service.scoring.scorer import EngineInfo, Scorer
from qtune_service.spec_files import parse_spec

HERE = __name__
SAMPLE = Sample(np.arange(4, dtype=np.int32), np.array([0, 0, 1, 1], np.int8))


class Constant:
    """Gives `count` scores of 1 for each sample."""

    def __init__(self, model: ModelSpec, engine: EngineSpec, count: int = 2) -> None:
        self.info = EngineInfo(engine.name, "1", "cpu", "float32", "None", model.max_model_len or 9, 9)
        self._count = count

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """Return the same scores for all samples."""
        return [TokenScores(*np.ones((2, self._count), np.float32)) for _ in samples]

    def close(self) -> None:
        """Nothing is held."""


class Silent(Constant):
    """Forgets a sample."""

    def score(self, samples: Sequence[Sample]) -> list[TokenScores]:
        """One too few."""
        return super().score(samples[1:])


def too_short(model: ModelSpec, engine: EngineSpec) -> Constant:
    """Scores one token only."""
    return Constant(model, engine, count=1)


def nothing(_model: ModelSpec, _engine: EngineSpec) -> object:
    """No scorer at all."""
    return object()


NUMBER = 3


def build(name: str) -> Scorer:
    """Return the engine of this module by name."""
    return build_scorer(ModelSpec(name="m", max_model_len=7), EngineSpec(name=f"{HERE}:{name}"))


def test_a_factory_makes_the_engine() -> None:
    """It is called with model and engine spec, and its scores come through."""
    scorer = build("Constant")
    assert (scorer.info.name, scorer.info.max_model_len) == (f"{HERE}:Constant", 7)
    assert scorer.score([SAMPLE])[0].nll.tolist() == [1.0, 1.0]
    assert scorer.score([]) == []
    scorer.close()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("too_short", r"nll \(1,\) and entropy \(1,\) for sample 0, which has 2 scored tokens"),
        ("Silent", "gave 1 answers for 2 samples"),
    ],
)
def test_answers_that_do_not_fit_stop_the_job(name: str, told: str) -> None:
    """Scores for other tokens than asked for must not reach the thresholds."""
    with pytest.raises(EngineError, match=told):
        build(name).score([SAMPLE, SAMPLE])


def test_what_is_no_scorer_is_told_by_its_missing_parts() -> None:
    """The message names what the contract wants."""
    with pytest.raises(EngineError, match=r"instance of object, which lacks score, close, info \(an"):
        build("nothing")


@pytest.mark.parametrize(("name", "told"), [("missing", "has no attribute"), ("NUMBER", "cannot be called")])
def test_a_name_that_leads_nowhere(name: str, told: str) -> None:
    """It is the spec's fault and is told as such."""
    with pytest.raises(SpecError, match=told):
        build(name)


@pytest.mark.parametrize("name", ["vlm", "module", "module:", ":f", "a b:c", "a:b:c"])
def test_names_are_checked_in_the_spec(name: str) -> None:
    """A slip of the pen is found before anything starts."""
    body = {"input": {"paths": ["x"]}, "model": {"name": "m"}, "output": {"path": "o"}, "engine": {"name": name}}
    with pytest.raises(SpecError, match=r"engine\.name"):
        parse_spec(body)
