"""The contents of a job's report, from what its stages left."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from qtune_service.config import JobSpec
from qtune_service.output.layout import Output
from qtune_service.output.texts import read_decoder
from qtune_service.pipeline.score_stage import Scored
from qtune_service.pipeline.selection_stage import Verdict
from qtune_service.report.data import Counts, ExampleSample, ExampleToken, ReportData, TokenTotals
from qtune_service.report.tokens import token_texts
from qtune_service.selection.plane import Quadrant


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stage 1 and 2 gave."""

    verdict: Verdict
    markers: Mapping[int, Mapping[str, Any]]
    """Of the prune stage, by shard in order."""


def report_data(
    spec: JobSpec, output: Output, scored: Scored, pruned: Pruned, seconds: Mapping[str, float]
) -> ReportData:
    """All that report.html and summary_statistics.json say."""
    markers, verdict = pruned.markers.values(), pruned.verdict
    totals = verdict.totals
    before, after = (sum(m[name] for m in markers) for name in ("tokens_before", "tokens_after"))
    quadrants = [totals.counts[quadrant] for quadrant in Quadrant]
    return ReportData(
        title=f"Q-Tuning of {', '.join(spec.input.paths)}",
        spec=spec.model_dump(mode="json"),
        engine={**scored.engine, "template": scored.template},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        thresholds=totals.thresholds,
        target=totals.target,
        disjoint_capacity=totals.disjoint_capacity,
        counts=Counts.of(scored.reasons, [*quadrants, totals.kept, scored.trained_tokens, after]),
        tokens=TokenTotals(scored=scored.trained_tokens, before=before, after=after),
        sample=verdict.sample,
        point_ids=tuple(sample_id for m in markers for sample_id in m["points"]),
        distributions=verdict.distributions,
        by_source=_groups((m["by_source"] for m in markers), scored.rejected_by_source),
        by_category=_groups((m["by_category"] for m in markers), scored.rejected_by_category),
        seconds=dict(seconds),
        warnings=_warnings(verdict),
        examples=_examples(output, [e for m in markers for e in m["examples"]]),
        curve=verdict.curve,
        output=output.root,
    )


def _warnings(verdict: Verdict) -> tuple[str, ...]:
    if verdict.weighing is None or verdict.weighing.sides.is_unbiased:
        return ()
    sides = verdict.weighing.sides
    share = sides.above / verdict.totals.num_samples
    beyond = (
        f"InfoBatch keeps every sample at or above the mean loss, {share:.1%} of this data, and the target is below: "
    )
    return (beyond + "some of these were drawn, and none of the others. The weights cannot make up for that.",)


def _groups(
    tallies: Iterable[Mapping[str, Sequence[int]]], rejected: Mapping[str, Mapping[str, int]]
) -> dict[str, Counts]:
    """Counts by name, summed over shards, with the rejected of that name."""
    nothing = [0] * 7
    sums = dict.fromkeys(rejected, nothing)
    for tally in tallies:
        for name, counts in tally.items():
            sums[name] = [a + b for a, b in zip(sums.get(name, nothing), counts, strict=True)]
    return {name: Counts.of(rejected.get(name, {}), counts) for name, counts in sums.items()}


def _examples(output: Output, examples: Sequence[Mapping[str, Any]]) -> tuple[ExampleSample, ...]:
    decode = read_decoder(output)
    names = ("sample_id", "source", "line", "quadrant", "perplexity", "kept", "error_rank", "entropy_rank", "why")
    return tuple(
        ExampleSample(
            **{name: e[name] for name in names},
            entropy=e["mean_entropy"],
            tokens=tuple(_tokens(e, token_texts(decode, e["input_ids"]))),
        )
        for e in examples
    )


def _tokens(example: Mapping[str, Any], texts: Sequence[str]) -> Iterable[ExampleToken]:
    scores = iter(zip(example["nll"], example["entropy"], example["smoothed"], strict=True))
    for text, trained, kept in zip(texts, example["loss_mask"], example["final_mask"], strict=True):
        if not trained:
            yield ExampleToken(text, "prompt")
            continue
        nll, entropy, smoothed = next(scores)
        yield ExampleToken(text, "kept" if kept else "removed", nll, entropy, smoothed)
