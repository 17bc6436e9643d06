"""What a report is made of: plain values that the pipeline fills in, free of files and engines.

The counts hold only what is independent (the quadrants, the kept and the rejected); read, scored and pruned are derived
from them, so kept + pruned + rejected = read holds by construction, in the total and in every row of every table.

Who chose the samples: the method, a rule of the user's in its place, or another strategy.

By the method and by a rule, a sample's quadrant tells its fate. Another strategy keeps samples of every quadrant, and
the quadrants only tell where samples lie.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qtune_service.selection.curve import CurvePoint
from qtune_service.selection.distributions import Distributions
from qtune_service.selection.even_sample import EvenSample
from qtune_service.selection.examples import ExampleKind
from qtune_service.selection.plane import Thresholds

QuadrantName = Literal["Q1", "Q2", "Q3", "Q4"]
TokenState = Literal["prompt", "kept", "removed"]


@dataclass(frozen=True, slots=True)
class QuadrantMeaning:
    """How a quadrant is called in a report, and what happens to its samples."""

    label: QuadrantName
    name: str
    fate: str
    place: str
    kept: bool


QUADRANTS: tuple[QuadrantMeaning, ...] = (
    QuadrantMeaning("Q1", "Harmful noise", "dropped", "high perplexity, high entropy", kept=False),
    QuadrantMeaning(
        "Q2", "Valuable misconception", "kept, worst tokens masked", "high perplexity, low entropy", kept=True
    ),
    QuadrantMeaning("Q3", "Redundant knowledge", "dropped", "low perplexity, low entropy", kept=False),
    QuadrantMeaning("Q4", "Calibration data", "kept whole", "low perplexity, high entropy", kept=True),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples of a job, a source or a category, and their trained tokens."""

    rejected: int = 0
    q1: int = 0
    q2: int = 0
    q3: int = 0
    q4: int = 0
    kept: int = 0
    """Samples in the product: Q2 and Q4, unless another strategy than Q-Tuning chose."""
    tokens_before: int = 0
    """Trained tokens of all scored samples."""
    tokens_after: int = 0
    """Of these, the ones that are still trained on."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Of the rejected."""

    @classmethod
    def of(cls, reasons: Mapping[str, int], counts: Sequence[int]) -> Counts:
        """From the rejected, and: Q1, Q2, Q3, Q4, kept, tokens before, tokens after."""
        q1, q2, q3, q4, kept, before, after = counts
        return cls(sum(reasons.values()), q1, q2, q3, q4, kept, before, after, reasons)

    @property
    def scored(self) -> int:
        """Samples with a quadrant."""
        return self.q1 + self.q2 + self.q3 + self.q4

    @property
    def read(self) -> int:
        """All records."""
        return self.scored + self.rejected

    @property
    def pruned(self) -> int:
        """Samples scored and left out."""
        return self.scored - self.kept

    def as_dict(self) -> dict[str, int]:
        """The nine counts by the names of manifest.json."""
        totals = {name: getattr(self, name) for name in ("read", "scored", "kept", "pruned", "rejected")}
        return totals | {"Q1": self.q1, "Q2": self.q2, "Q3": self.q3, "Q4": self.q4}


@dataclass(frozen=True, slots=True)
class TokenTotals:
    """Trained tokens: those under the loss mask."""

    scored: int  # of all scored samples
    before: int  # of kept samples, before stage 2
    after: int  # of kept samples, after stage 2


@dataclass(frozen=True, slots=True)
class TokenView:
    """The view of one token in reports, pages, analysis files and the terminal. Prompt tokens have no scores."""

    text: str
    state: TokenState
    nll: float | None = None  # nats
    entropy: float | None = None  # nats
    score: float | None = None
    """What stage 2 orders by: its perplexity smoothed with its neighbours' (selection/token_masks.py)."""


@dataclass(frozen=True, slots=True)
class ExampleSample:
    """A sample shown with its tokens. Of a dropped one all trained tokens go, whatever their state."""

    sample_id: str
    source: str
    line: int | None
    quadrant: QuadrantName
    perplexity: float
    entropy: float  # nats
    tokens: tuple[TokenView, ...]
    kept: bool = True
    error_rank: float | None = None  # mid-ranks in (0, 1)
    entropy_rank: float | None = None
    why: ExampleKind = "typical"


@dataclass(frozen=True, slots=True)
class ReportData:
    """Everything that report.html and summary_statistics.json say."""

    title: str
    spec: Mapping[str, Any]  # JobSpec.model_dump(mode="json")
    engine: Mapping[str, Any]  # EngineInfo, and versions
    created_at: str  # ISO 8601
    thresholds: Thresholds | None  # None where nothing was scored
    target: int  # samples asked for
    disjoint_capacity: int  # most samples that corners without overlap hold
    counts: Counts
    tokens: TokenTotals
    sample: EvenSample
    """An even sample of the population, for pictures."""
    point_ids: tuple[str, ...]
    """Ids of `sample.points()`, in their order."""
    distributions: Distributions
    by_source: Mapping[str, Counts] = field(default_factory=dict)
    by_category: Mapping[str, Counts] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> wall-clock
    warnings: tuple[str, ...] = ()  # the pipeline's own; findings.py adds what the numbers say
    examples: tuple[ExampleSample, ...] = ()  # a few a quadrant; at most examples.MAX_PER_QUADRANT are shown
    curve: tuple[CurvePoint, ...] = ()
    """What other ratios would keep, ascending; empty where another strategy than Q-Tuning, or a rule, chose."""
    output: str = ""
    """Where the job's output is, for commands to copy."""


_STRATEGIES = {
    "random": "random choice",
    "longest": "the longest first",
    "perplexity": "the highest perplexity first",
    "entropy": "the highest entropy first",
    "infobatch": "InfoBatch",
}
_TURNED = {
    "longest": "the shortest first",
    "perplexity": "the lowest perplexity first",
    "entropy": "the lowest entropy first",
}


def prune_spec(data: ReportData) -> Mapping[str, Any]:
    """The job's arguments of the method; empty where it has none."""
    part: Mapping[str, Any] = data.spec.get("prune") or {}
    return part


def other_strategy(data: ReportData) -> str | None:
    """What chose the samples, in words, where it was not the method."""
    prune = prune_spec(data)
    name = prune.get("strategy", "q_tuning")
    if name == "q_tuning":
        return None
    turned = _TURNED.get(name) if prune.get("strategy_order") == "lowest" else None
    return turned or _STRATEGIES.get(name, str(name))


def quadrant_rule(data: ReportData) -> str | None:
    """The user's own rule, `module:function`."""
    rule: str | None = prune_spec(data).get("quadrant_rule")
    return rule


def fates(data: ReportData) -> dict[QuadrantName, str]:
    """What happens to a quadrant's samples, in a word or two; empty where the quadrant does not tell."""
    if other_strategy(data) is not None:
        return {}
    is_masked = data.tokens.after < data.tokens.before
    kept = ("kept, masked", "kept whole") if is_masked else ("kept", "kept")
    return {"Q1": "dropped", "Q2": kept[0], "Q3": "dropped", "Q4": kept[1]}
