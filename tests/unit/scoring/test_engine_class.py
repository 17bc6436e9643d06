"""One class of engines scores a job: its actors agree on it, and `auto` is decided once."""

from __future__ import annotations

import time

import pytest

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineMismatchError
from qtune_service.scoring import choose_engine, engine_class
from qtune_service.scoring.choose_engine import EngineChoice
from qtune_service.scoring.engine_class import EngineAgreement, EngineClass, build_agreed, class_of_shards
from tests.finished_outputs import DrawnScorer
from tests.jobs import DEMO_MODEL

INFO = {"name": "vllm", "version": "0.32.1+cu130", "device": "NVIDIA H200", "dtype": "bfloat16"}
VLLM = EngineClass.of(INFO)
REFERENCE = EngineClass("reference", "transformers 5.19, torch 2.13", "bfloat16", "gpu")


def test_what_a_class_has() -> None:
    """Patches, builds and models of GPUs are left out; minor versions, dtypes and kinds of devices are not."""
    assert str(VLLM) == "vllm 0.32 in bfloat16 on a GPU"
    assert EngineClass.of({**INFO, "version": "0.32.9", "device": "NVIDIA A100-SXM4-80GB"}) == VLLM
    libraries = {"name": "reference", "version": "transformers 5.19.0.dev0, torch 2.13.0+cpu", "device": "cpu"}
    assert EngineClass.of({**INFO, **libraries}).version == "transformers 5.19, torch 2.13"
    for change in ({"version": "0.33.0"}, {"device": "cpu"}, {"dtype": "float16"}, {"name": "reference"}):
        assert EngineClass.of({**INFO, **change}) != VLLM


def test_markers_of_one_class() -> None:
    """Markers without an engine, of shards without samples, say nothing; two classes are an error."""
    assert class_of_shards([]) is None
    assert class_of_shards([{}, INFO, {**INFO, "version": "0.32.2"}]) == VLLM
    with pytest.raises(EngineMismatchError, match=r"vllm 0\.32 in bfloat16 on a GPU, vllm 0\.33 in bfloat16 on a GPU"):
        class_of_shards([INFO, {**INFO, "version": "0.33.0"}])


class Clock:
    """A clock that tests set."""

    now_s = 100.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now_s


def test_a_broken_installation_does_not_decide() -> None:
    """An actor without vLLM is the first one to answer, since its import fails early. It waits for the others."""
    agreement = EngineAgreement(Clock(), voters=8)
    assert agreement.propose("a", None, is_fallback=False) is None
    assert agreement.propose("a", REFERENCE, is_fallback=True) is None
    assert agreement.propose("b", VLLM, is_fallback=False) == VLLM
    assert agreement.propose("a", REFERENCE, is_fallback=True) == VLLM
    assert agreement.propose("c", None, is_fallback=False) == VLLM


def test_a_cluster_without_vllm() -> None:
    """It decides once all actors have answered, or after a while if some never start."""
    agreement = EngineAgreement(Clock(), voters=2)
    assert agreement.propose("a", REFERENCE, is_fallback=True) is None
    assert agreement.propose("a", REFERENCE, is_fallback=True) is None
    assert agreement.propose("b", REFERENCE, is_fallback=True) == REFERENCE
    clock = Clock()
    agreement = EngineAgreement(clock, voters=64)
    assert agreement.propose("a", REFERENCE, is_fallback=True) is None
    clock.now_s += engine_class.FALLBACK_WAIT_S
    assert agreement.propose("a", REFERENCE, is_fallback=True) == REFERENCE
    assert EngineAgreement(Clock(), voters=1).propose("a", REFERENCE, is_fallback=True) == REFERENCE


def test_a_node_without_vllm_is_refused_before_it_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its error has its name, the reason why vLLM cannot be used there, and the remedy."""
    found = EngineChoice("reference", "vLLM 0.32.0 is installed but does not start: libcuda.so.1 is missing")
    monkeypatch.setattr(choose_engine, "choose_engine", lambda *_: found)
    monkeypatch.setattr(choose_engine, "build_scorer", lambda *_: pytest.fail("a model was loaded"))
    agreement = EngineAgreement(voters=8)
    waits: list[float] = []

    def other_actor_starts(seconds: float) -> None:
        waits.append(seconds)
        agreement.propose("other", VLLM, is_fallback=False)

    monkeypatch.setattr(time, "sleep", other_actor_starts)
    with pytest.raises(EngineMismatchError, match=r"node-7:12 has the engine reference .*libcuda\.so\.1") as failure:
        build_agreed(
            ModelSpec(name=DEMO_MODEL),
            EngineSpec(),
            lambda engine, *, is_fallback=False: agreement.propose("me", engine, is_fallback=is_fallback),
            "node-7:12",
        )
    assert len(waits) == 1
    assert failure.value.hint.startswith("Install vllm 0.32 on this node")


def test_an_engine_of_a_user_is_closed_where_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its version is known only once it is built."""
    closed: list[DrawnScorer] = []

    def close(scorer: DrawnScorer) -> None:
        closed.append(scorer)

    monkeypatch.setattr(DrawnScorer, "close", close)
    agreement = EngineAgreement(agreed=EngineClass("drawn", "2", "float32", "cpu"))
    with pytest.raises(EngineMismatchError, match="differ in version"):
        build_agreed(
            ModelSpec(name=DEMO_MODEL),
            EngineSpec(name="tests.finished_outputs:DrawnScorer"),
            lambda engine, *, is_fallback=False: agreement.propose("me", engine, is_fallback=is_fallback),
            "here:1",
        )
    assert len(closed) == 1
