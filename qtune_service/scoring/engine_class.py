"""The class of engines that may score one output, and the agreement of a job's actors on it.

Scores of one output come from one engine by name, one version up to its patches, one dtype, and one kind of device.
Other engines differ by rounding at least, so ranks and thresholds over a mix would depend on which engine got which
shard. The class is that of the shards that are scored already, or in a new output that of the first actor that starts.
Each actor compares its own engine before it loads the model.

`auto` is decided once for all actors. An actor where vLLM can be used decides it immediately. An actor where it cannot
waits for others, because a node with a broken installation fails first: it decides only if no actor disagrees within
FALLBACK_WAIT_S, or all actors that the cluster has room for find the same.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.errors import EngineMismatchError
from qtune_service.scoring import choose_engine
from qtune_service.scoring.model_config import read_checkpoint
from qtune_service.scoring.process_environment import apply_environment
from qtune_service.scoring.scorer import Scorer

FALLBACK_WAIT_S, POLL_S = 60.0, 1.0
_VERSION = re.compile(r"(\d+\.\d+)[^\s,]*")


@dataclass(frozen=True, slots=True)
class EngineClass:
    """What the engines of one output have in common."""

    name: str
    version: str
    """Version without patch and build, such as `0.32`."""
    dtype: str
    device: str
    """`cpu` or `gpu`. GPUs of several models may share a job."""

    @classmethod
    def of(cls, info: Mapping[str, Any]) -> EngineClass:
        """Return the class of an EngineInfo in plain data, as a marker has it."""
        device = "cpu" if str(info["device"]).lower().startswith("cpu") else "gpu"
        return cls(info["name"], _VERSION.sub(r"\1", info["version"]), info["dtype"], device)

    def __str__(self) -> str:
        return f"{self.name} {self.version} in {self.dtype} on a {self.device.upper()}"


def class_of_shards(engines: Iterable[Mapping[str, Any]]) -> EngineClass | None:
    """Return the class of the engines in markers, None without any. Raise EngineMismatchError for a mix."""
    found = sorted({EngineClass.of(info) for info in engines if info}, key=str)
    if len(found) > 1:
        raise EngineMismatchError(
            f"the shards were scored by different engines: {', '.join(map(str, found))}",
            "Choose one with --engine, and start from scratch with --overwrite.",
        )
    return found[0] if found else None


@dataclass(slots=True)
class EngineAgreement:
    """The decision for one class of engines, where all actors of a run reach it."""

    clock: Callable[[], float] = time.monotonic
    agreed: EngineClass | None = None
    voters: int = 1
    """Actors that decide together where none of them can use vLLM."""
    _fallbacks: dict[str, EngineClass] = field(default_factory=dict)
    _since_s: float = 0.0

    def propose(self, actor: str, engine: EngineClass | None, *, is_fallback: bool) -> EngineClass | None:
        """Return the agreed class, after the proposal of an actor. None: there is none yet."""
        if self.agreed is not None or engine is None:
            return self.agreed
        if not is_fallback:
            self.agreed = engine
            return engine
        if not self._fallbacks:
            self._since_s = self.clock()
        self._fallbacks[actor] = engine
        if len(self._fallbacks) >= self.voters or self.clock() - self._since_s >= FALLBACK_WAIT_S:
            self.agreed = next(iter(self._fallbacks.values()))
        return self.agreed


class Propose(Protocol):
    """Proposes a class for the job, on behalf of one actor."""

    def __call__(self, engine: EngineClass | None, *, is_fallback: bool = False) -> EngineClass | None:
        """Return the agreed class, None while there is none. `engine` None only asks."""
        ...


def build_agreed(model: ModelSpec, engine: EngineSpec, propose: Propose, actor: str) -> Scorer:
    """Load the model on the engine that the job's actors agree on.

    Raise EngineMismatchError where this process has another engine: before the model is loaded, except for engines of
    users, whose version is known only then.
    """
    agreed = propose(None)
    if agreed is not None and engine.name == "auto":
        engine = engine.model_copy(update={"name": agreed.name})
    choice = choose_engine.choose_engine(model, engine)
    if choice.name in ("vllm", "reference"):
        own = _own_class(choice.name, model)
        is_fallback = engine.name == "auto" and choice.name == "reference"
        while (agreed := propose(own, is_fallback=is_fallback)) is None:
            time.sleep(POLL_S)
        _check(own, agreed, actor, choice.reason if is_fallback else "")
    scorer = choose_engine.build_scorer(model, engine)
    try:
        own = EngineClass.of({name: getattr(scorer.info, name) for name in ("name", "version", "dtype", "device")})
        _check(own, propose(own) or own, actor, "")
    except BaseException:
        scorer.close()
        raise
    return scorer


def _own_class(name: str, model: ModelSpec) -> EngineClass:
    """Return the class of an engine here, without loading the model."""
    apply_environment()
    if name == "vllm":
        from qtune_service.scoring.vllm.engine import check_version, installed_vllm

        version = check_version(installed_vllm())
    else:
        from qtune_service.scoring.reference import installed_versions

        version = installed_versions()
    import torch

    device = "gpu" if torch.cuda.device_count() else "cpu"  # unlike is_available, it does not initialise CUDA
    return EngineClass.of({"name": name, "version": version, "dtype": read_checkpoint(model).dtype, "device": device})


def _check(own: EngineClass, agreed: EngineClass, actor: str, reason: str) -> None:
    if own == agreed:
        return
    names = ("name", "version", "dtype", "device")
    differing = [name for name in names if getattr(own, name) != getattr(agreed, name)]
    because = f" ({reason})" if reason else ""
    raise EngineMismatchError(
        f"{actor} has the engine {own}{because}, and the scores of this job are of {agreed}: "
        f"they differ in {', '.join(differing)}",
        _remedy(agreed, differing),
    )


def _remedy(agreed: EngineClass, differing: list[str]) -> str:
    fresh = "or score all of it here, with --overwrite or another --output."
    if "name" in differing:
        return f"Install {agreed.name} {agreed.version} on this node, or pass --engine {agreed.name}, {fresh}"
    if "version" in differing:
        return f"Install {agreed.name} {agreed.version} on this node to continue, {fresh}"
    if "dtype" in differing:
        return f"Pass --dtype {agreed.dtype} to continue, {fresh}"
    return f"Run it on nodes with a {agreed.device.upper()} to continue, {fresh}"
