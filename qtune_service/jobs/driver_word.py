"""What a driver says about itself, beside its output: how far it is, and how it ended.

Server and driver need not know each other, nor be alive at the same time: a finished output has a manifest, a driver at
work rewrites progress.json every few seconds, and one that failed leaves its error there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qtune_service.data import storage
from qtune_service.jobs.models import JobError, Progress
from qtune_service.outputs.folder import Output


@dataclass(frozen=True, slots=True)
class DriverWord:
    """The last that was heard."""

    stage: str = ""
    progress: Progress = field(default_factory=Progress)
    updated_at_s: float = 0.0
    error: JobError | None = None
    manifest: Mapping[str, Any] | None = None
    """Of a finished output."""

    @property
    def complete(self) -> Progress:
        """Of a job that is through: its driver's last words on its progress may have been missed."""
        manifest = self.manifest or {}
        read = manifest.get("counts", {}).get("read", self.progress.samples_done)
        tokens = manifest.get("scoring", {}).get("tokens", self.progress.tokens_done)
        return Progress(samples_done=read, samples_total=read, tokens_done=tokens)


def read_word(output: str, *, before: Progress) -> DriverWord:
    """Look beside an output. before: what was known; stages that count no samples change nothing of it.

    Raises StorageError where the place does not answer.
    """
    folder = Output(output)
    manifest = folder.manifest
    uri = folder.at("_qtune", "progress.json")
    body = storage.read_json(uri) if storage.stat(uri) else {}
    error = body.get("error")
    return DriverWord(
        stage=body.get("stage", ""),
        progress=_progress(body, before),
        updated_at_s=body.get("updated_at_s", 0.0),
        error=None if error is None else JobError(**error),
        manifest=manifest,
    )


def _progress(body: Mapping[str, Any], before: Progress) -> Progress:
    if body.get("stage") != "score":
        return Progress(before.samples_done, before.samples_total, before.tokens_done, 0.0, body.get("eta_s"))
    return Progress(
        samples_done=body["done"],
        samples_total=body["total"],
        tokens_done=body["tokens_done"],
        tokens_per_s=round(body["tokens_per_s"], 1),
        eta_s=None if body["eta_s"] is None else round(body["eta_s"], 1),
    )
