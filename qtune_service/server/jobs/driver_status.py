"""What a driver says about itself, beside its output: how far it is, and how it ended.

Server and driver need not know each other, nor be alive at the same time: a finished output has a manifest, a driver at
work rewrites progress.json every few seconds, and one that failed leaves its error there.

How long drivers have been silent, by the watcher's own clock: clocks of other machines may be off.

A beat is known by its own time only as one that differs from the one before. What is held here may be lost: a new
server begins to wait anew.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtune_service.errors import DamagedFileError, OutputConflictError
from qtune_service.job_states import JobError, Progress
from qtune_service.output.layout import Output


@dataclass(frozen=True, slots=True)
class Beats:
    """The last beat of each driver, and when it was first seen here."""

    _seen: dict[str, tuple[float, float]] = field(default_factory=dict)

    def silence_s(self, driver: str, beat: float) -> float:
        """Take note of a driver's last beat; for how long there has been none after it."""
        now = time.monotonic()
        last, seen_s = self._seen.get(driver, (None, now))
        if last != beat:
            seen_s = now
        self._seen[driver] = beat, seen_s
        return now - seen_s

    def keep_only(self, drivers: Collection[str]) -> None:
        """Forget those that are followed no more."""
        for gone in self._seen.keys() - drivers:
            del self._seen[gone]


MAX_STATUS_BYTES = 16 << 20
"""The largest that progress.json may be; its history is bounded to far less."""
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Number = Annotated[float, Field(ge=0)]


class _Checked(BaseModel):
    """What is read beside an output. Others may have written it, and it is shown to everybody: see `read_word`."""

    model_config = ConfigDict(allow_inf_nan=False, strict=True)


class _Error(_Checked):
    code: Annotated[str, Field(max_length=100)]
    message: Annotated[str, Field(max_length=1 << 20)]
    hint: Annotated[str, Field(max_length=1 << 20)] = ""


class _Status(_Checked):
    """progress.json, as far as the server needs it."""

    stage: Annotated[str, Field(max_length=32)] = ""
    done: Count = 0
    total: Count | None = None
    tokens_done: Count = 0
    tokens_per_s: Number = 0.0
    eta_s: Number | None = None
    updated_at_s: Number = 0.0
    error: _Error | None = None


class _Scoring(_Checked):
    tokens: Count = 0


class _Manifest(_Checked):
    """manifest.json, as far as every page shows it."""

    counts: Annotated[dict[str, Count], Field(max_length=100)] = {}
    thresholds: Annotated[dict[str, float | Annotated[str, Field(max_length=100)] | None], Field(max_length=100)] = {}
    scoring: _Scoring = _Scoring()


@dataclass(frozen=True, slots=True)
class DriverWord:
    """The last that was heard."""

    stage: str = ""
    progress: Progress = field(default_factory=Progress)
    updated_at_s: float = 0.0
    error: JobError | None = None
    manifest: Mapping[str, Any] | None = None
    """Of a finished output. `counts` and `thresholds` are checked, the rest is not."""
    damage: JobError | None = None
    """Why the output's own files say nothing: somebody else wrote them."""

    @property
    def counts(self) -> dict[str, int]:
        """Counts of a finished output."""
        return dict((self.manifest or {}).get("counts") or {})

    @property
    def thresholds(self) -> dict[str, Any]:
        """Thresholds of a finished output."""
        return dict((self.manifest or {}).get("thresholds") or {})

    @property
    def complete(self) -> Progress:
        """Of a job that is through: its driver's last words on its progress may have been missed."""
        read = self.counts.get("read", self.progress.samples_done)
        tokens = ((self.manifest or {}).get("scoring") or {}).get("tokens", self.progress.tokens_done)
        return Progress(samples_done=read, samples_total=read, tokens_done=tokens)


def read_word(output: str, *, before: Progress) -> DriverWord:
    """Look beside an output. before: what was known; stages that count no samples change nothing of it.

    Whoever can write to the output can write these files, so they are checked; what is wrong with them is `damage`.
    Raises StorageError where the place does not answer.
    """
    folder = Output(output, may_be_link=False)
    try:
        manifest = folder.manifest
        if manifest is not None:
            _Manifest.model_validate({name: manifest[name] for name in _Manifest.model_fields if manifest.get(name)})
        status = _Status.model_validate(folder.read_object("_qtune", "progress.json", max_bytes=MAX_STATUS_BYTES) or {})
    except (DamagedFileError, OutputConflictError) as error:
        return DriverWord(progress=before, damage=JobError("damaged_output", error.message, error.hint))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        damage = JobError("damaged_output", f"the output's own files cannot be used: {what}", "Somebody changed them.")
        return DriverWord(progress=before, damage=damage)
    return DriverWord(
        stage=status.stage,
        progress=_progress(status, before),
        updated_at_s=status.updated_at_s,
        error=None if status.error is None else JobError(**status.error.model_dump()),
        manifest=manifest,
    )


def _progress(status: _Status, before: Progress) -> Progress:
    if status.stage != "score":
        return Progress(before.samples_done, before.samples_total, before.tokens_done, 0.0, status.eta_s)
    return Progress(
        samples_done=status.done,
        samples_total=status.total,
        tokens_done=status.tokens_done,
        tokens_per_s=round(status.tokens_per_s, 1),
        eta_s=None if status.eta_s is None else round(status.eta_s, 1),
    )
