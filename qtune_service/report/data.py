"""The values that a report consists of. The pipeline fills them in, and they know nothing of files and engines.

The counts hold only independent numbers (the quadrants, kept and rejected samples). Read, scored and pruned are derived
from them, so kept + pruned + rejected = read holds in the total and in every row of every table.

By the method and by a rule of the user, a sample's quadrant decides whether it is kept. Another strategy keeps samples
of every quadrant, and the quadrants only describe the scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from qtune_service.selection.curve import CurvePoint
from qtune_service.selection.distributions import Distributions, EvenSample
from qtune_service.selection.examples import ExampleKind
from qtune_service.selection.plane import Thresholds

QuadrantName = Literal["Q1", "Q2", "Q3", "Q4"]
TokenState = Literal["prompt", "kept", "removed"]


@dataclass(frozen=True, slots=True)
class QuadrantMeaning:
    """The name of a quadrant in a report, and the decision on its samples."""

    label: QuadrantName
    name: str
    decision: str
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
    """Kept samples: Q2 and Q4, unless another strategy than Q-Tuning chose."""
    tokens_before: int = 0
    """Trained tokens of all scored samples."""
    tokens_after: int = 0
    """The trained tokens that are left of these."""
    reasons: Mapping[str, int] = field(default_factory=dict)
    """Number of rejected records by reason."""

    @classmethod
    def of(cls, reasons: Mapping[str, int], counts: Sequence[int]) -> Counts:
        """Return the counts of rejected records, and of: Q1, Q2, Q3, Q4, kept, tokens before, tokens after."""
        q1, q2, q3, q4, kept, before, after = counts
        return cls(sum(reasons.values()), q1, q2, q3, q4, kept, before, after, reasons)

    @property
    def scored(self) -> int:
        """Return the number of samples with a quadrant."""
        return self.q1 + self.q2 + self.q3 + self.q4

    @property
    def read(self) -> int:
        """Return the number of all records."""
        return self.scored + self.rejected

    @property
    def pruned(self) -> int:
        """Return the number of scored samples that are not kept."""
        return self.scored - self.kept

    def as_dict(self) -> dict[str, int]:
        """Return the nine counts under their names in manifest.json."""
        totals = {name: getattr(self, name) for name in ("read", "scored", "kept", "pruned", "rejected")}
        return totals | {"Q1": self.q1, "Q2": self.q2, "Q3": self.q3, "Q4": self.q4}


@dataclass(frozen=True, slots=True)
class TokenTotals:
    """Numbers of trained tokens, which are those under the loss mask."""

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
    """Score by which stage 2 sorts tokens: perplexity, smoothed with the neighbours' (selection/token_masks.py)."""


@dataclass(frozen=True, slots=True)
class ExampleSample:
    """A sample with its tokens. A dropped sample loses all trained tokens, whatever their state."""

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
    """All data of report.html and summary_statistics.json."""

    title: str
    spec: Mapping[str, Any]  # JobSpec.model_dump(mode="json")
    engine: Mapping[str, Any]  # EngineInfo, and versions
    created_at: str  # ISO 8601
    thresholds: Thresholds | None  # None if nothing was scored
    target: int  # samples to keep
    disjoint_capacity: int  # largest number of samples in corners without overlap
    counts: Counts
    tokens: TokenTotals
    sample: EvenSample
    """An even sample of the population, for charts."""
    point_ids: tuple[str, ...]
    """Ids of `sample.points()`, in their order."""
    distributions: Distributions
    by_source: Mapping[str, Counts] = field(default_factory=dict)
    by_category: Mapping[str, Counts] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)  # stage -> wall-clock
    warnings: tuple[str, ...] = ()  # of the pipeline; text.py adds those of the numbers
    examples: tuple[ExampleSample, ...] = ()  # a few a quadrant; examples.MAX_PER_QUADRANT limits those shown
    curve: tuple[CurvePoint, ...] = ()
    """Results of other ratios, ascending. Empty for another strategy than Q-Tuning, and for a rule."""
    output: str = ""
    """The folder of the job's output, for commands."""
    lost_end_of_turn: int = 0
    """Kept samples of which an end-of-turn token left the loss."""


_STRATEGIES = {
    "random": "random choice",
    "longest": "the longest first",
    "perplexity": "the highest perplexity first",
    "entropy": "the highest entropy first",
    "infobatch": "InfoBatch",
}
_REVERSED = {
    "longest": "the shortest first",
    "perplexity": "the lowest perplexity first",
    "entropy": "the lowest entropy first",
}


def prune_spec(data: ReportData) -> Mapping[str, Any]:
    """Return the job's arguments of the method, empty if it has none."""
    part: Mapping[str, Any] = data.spec.get("prune") or {}
    return part


def other_strategy(data: ReportData) -> str | None:
    """Return a description of the strategy if it is not Q-Tuning."""
    prune = prune_spec(data)
    name = prune.get("strategy", "q_tuning")
    if name == "q_tuning":
        return None
    reversed_name = _REVERSED.get(name) if prune.get("strategy_order") == "lowest" else None
    return reversed_name or _STRATEGIES.get(name, str(name))


def quadrant_rule(data: ReportData) -> str | None:
    """Return the user's own rule, `module:function`."""
    rule: str | None = prune_spec(data).get("quadrant_rule")
    return rule


def decisions(data: ReportData) -> dict[QuadrantName, str]:
    """Return a short text of the decision on each quadrant's samples, empty if quadrants do not decide."""
    if other_strategy(data) is not None:
        return {}
    is_masked = data.tokens.after < data.tokens.before
    kept = ("kept, masked", "kept whole") if is_masked else ("kept", "kept")
    return {"Q1": "dropped", "Q2": kept[0], "Q3": "dropped", "Q4": kept[1]}
