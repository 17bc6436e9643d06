"""The service's work: take submissions, start what is queued, follow what runs, find out the truth after an absence.

`tick` does one round of it and is called every second. It holds nothing in memory that matters: what it decides on is
in the store, beside the outputs, and with the launchers, so a server that is killed at any point is replaced by the
next one, and several servers on one database do each job once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from qtune_service.config import JobSpec, parse_spec
from qtune_service.errors import (
    DamagedFileError,
    DatabaseError,
    IllegalMoveError,
    LauncherAwayError,
    LaunchError,
    NotAllowedError,
    NotFoundError,
    OutputConflictError,
    QTuneError,
)
from qtune_service.ingest.discovery import INPUT_ROOTS
from qtune_service.job_states import Job, JobError, JobStatus, Progress
from qtune_service.output.layout import Output
from qtune_service.output.removal import clear
from qtune_service.server.jobs.dataset_uris import resolved
from qtune_service.server.jobs.driver_status import Beats, DriverWord, read_word
from qtune_service.server.jobs.policy import Policy
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.launchers.base import DriverState, Launcher, server_stop_limit_s

SILENCE_S = 30.0
"""A driver that cannot be asked about and has written nothing for so long is gone."""
PATIENCE_S = 60.0
"""How long a job waits for a place that does not answer before it fails."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobService:
    """Jobs in a store, and the places where they run."""

    store: JobStore
    launchers: Mapping[str, Launcher]
    max_running: int = 1
    datasets_root: str = ""
    """Where `dataset://` leads."""
    policy: Policy | None = None
    """What jobs may touch; None: anything, for tests."""
    on_scored: Callable[[int, int], None] = lambda _samples, _tokens: None
    """Told of samples and tokens that were scored since the last time."""
    beats: Beats = field(default_factory=Beats)

    def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Queue a job; (job, whether it is new). Raises OutputConflictError where its output is another job's."""
        if new.output.rpartition("/")[2] != new.id:
            self._require_own_output(new)
        return self.store.create(new)

    def _require_own_output(self, new: NewJob) -> None:
        """Refuse an output that by its own record belongs to a job with another spec, also one of no server."""
        recorded = Output(new.output, may_be_link=False).owner()
        if recorded is not None and not self._is_of(recorded, new.spec):
            raise OutputConflictError(
                f"{new.output} belongs to another job", "Choose another output. To prune its scores again: from_scores."
            )

    def cancel(self, job_id: str) -> Job:
        """Cancel a job: at once where it is queued, else as soon as its driver has saved what it has in hand."""
        return self.store.request_cancel(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again; it resumes where it was.

        Raises NotAllowedError where today's policy forbids it.
        """
        self._settled(self.store.get(job_id))
        return self.store.move(job_id, JobStatus.queued)

    def delete(self, job_id: str, *, keep_output: bool = False) -> str:
        """Forget a job that has ended, with its log, and clear its output: why it was kept, or nothing.

        The output is cleared only where it is this job's by its own record and no other job names it. Raises
        IllegalMoveError, and OutputConflictError while another process works on the output.
        """
        job = self.store.get(job_id)
        output = Output(job.output, may_be_link=False)
        why_kept = "as requested" if keep_output else self._why_kept(job)
        if why_kept:
            self.store.delete(job_id)
        else:
            with output.locked(on_lost=lambda: _log.error("lost the lease of %s while removing it", job.output)):
                self.store.delete(job_id)  # first, for it can be refused; the lock keeps everybody else away
                clear(output)
        if (launcher := self.launchers.get(job.launcher)) is not None:
            launcher.forget(job)
        if why_kept and not keep_output:
            _log.warning("job %s was deleted; its output %s was kept: %s", job_id, job.output, why_kept)
        return why_kept

    def _why_kept(self, job: Job) -> str:
        """Why an output is not to be cleared with its job; nothing where it is."""
        if others := self.store.naming(job.output, other_than=job.id):
            return f"job {others[0]} has it too"
        if why := self._why_foreign(job):
            return why
        began = Output(job.output, may_be_link=False).owning_job()
        return "" if began in (job.id, None) else f"{f'job {began}' if began else 'a command'} began it"

    def _why_foreign(self, job: Job) -> str:
        """Why an output is not this job's by its own record; nothing where it is."""
        try:
            recorded = Output(job.output, may_be_link=False).owner()
        except (OutputConflictError, DamagedFileError) as error:
            return error.message
        if recorded is None:
            return "it holds no record of a job"
        return "" if self._is_of(recorded, job.spec) else "by its own record it is of another job"

    def _is_of(self, recorded: JobSpec, spec: Mapping[str, Any]) -> bool:
        """Return whether a recorded spec is a job's. One that this version does not read is none's."""
        try:
            wanted = JobSpec.model_validate(resolved(spec, self.datasets_root))
        except ValidationError:
            return False
        return recorded.fingerprint() == wanted.fingerprint()

    def _settled(self, job: Job) -> Mapping[str, Any]:
        """Return the job's spec as today's policy has it. Raise NotAllowedError and SpecError."""
        if self.policy is None:
            return job.spec
        return self.policy.settle(parse_spec(dict(job.spec), where=f"job {job.id}")).model_dump(mode="json")

    def variables(self) -> dict[str, str]:
        """Return what a driver must know of the policy, as environment: where input files may really be."""
        if self.policy is None:
            return {}
        return {INPUT_ROOTS: json.dumps([*self.policy.inputs, self.datasets_root])}

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """What a job's drivers printed, from a byte on. Raises NotFoundError where its launcher is not ours."""
        try:
            return self._launcher(job).log(job, start)
        except LaunchError as error:
            raise NotFoundError(f"the log of job {job.id} is not here: {error.message}", error.hint) from error

    def tick(self) -> None:
        """Follow all running jobs, and start queued ones while there is room. An error of one job concerns no other."""
        running = self.store.running()
        self.beats.keep_only({_driver(job) for job in running})
        for job in running:
            try:
                self._follow(job)
            except DatabaseError:
                raise
            except (LaunchError, OSError) as error:
                _log.warning("job %s could not be followed: %s", job.id, error)
            except (IllegalMoveError, NotFoundError):
                continue  # another server was faster
            except Exception:  # noqa: BLE001 - logged whole; the next round and other jobs go on
                _log.exception("job %s could not be followed", job.id)
        while (claimed := self.store.claim(self.max_running)) is not None:
            self._start(claimed)

    # --- start

    def _start(self, job: Job) -> None:
        try:
            spec = resolved(self._settled(job), self.datasets_root)
            reference = self._launcher(job).start(replace(job, spec=spec, variables=self.variables()))
        except NotAllowedError as error:
            self._end(job, JobStatus.failed, JobError(error.code, error.message, error.hint))
        except LauncherAwayError as error:
            self._wait_for_the_launcher(job, error)
        except QTuneError as error:
            self._end(job, JobStatus.failed, JobError("launch_failed", error.message, error.hint))
        else:
            self.store.note(job.id, reference=dict(reference))

    def _launcher(self, job: Job) -> Launcher:
        if (launcher := self.launchers.get(job.launcher)) is None:
            known = ", ".join(self.launchers) or "none"
            raise LaunchError(f"this server has no launcher {job.launcher!r}", f"There are: {known}.")
        return launcher

    def _wait_for_the_launcher(self, job: Job, error: LauncherAwayError) -> None:
        """`_adopt` tries again, for a while. Whether a driver was started is not known, so it is not a new attempt."""
        if time.time() - _started_s(job) < PATIENCE_S:
            self.store.note(job.id, stage="launch")
        elif job.cancel_requested:
            self._end(job, JobStatus.cancelled, None)
        else:
            self._end(job, JobStatus.failed, JobError("launch_failed", error.message, error.hint))

    # --- follow

    def _follow(self, job: Job) -> None:
        if not job.reference:
            self._adopt(job)
            return
        launcher = self.launchers.get(job.launcher)
        # The launcher first: what a driver writes last is then there to be read.
        state = launcher.state(job.reference) if launcher is not None else DriverState.elsewhere
        word = read_word(job.output, before=job.progress)
        self._note_progress(job, word.progress, stage=word.stage or job.stage)
        if state is DriverState.ended or (state is DriverState.elsewhere and self._is_silent(job, word)):
            self._conclude(job, word)
        elif job.cancel_requested and launcher is not None:
            self._stop(job, launcher)

    def _adopt(self, job: Job) -> None:
        """A server claimed the job and was lost before it wrote down the driver; or it is at it right now."""
        if job.started_at is None or time.time() - job.started_at.timestamp() > SILENCE_S / 2:
            self._start(job)

    def _conclude(self, job: Job, word: DriverWord) -> None:
        """The driver is gone; what it left says how it ended. Its error first: the manifest may be another job's."""
        if word.damage is not None:
            self._end(job, JobStatus.failed, word.damage)
        elif word.error is not None and word.updated_at_s >= _started_s(job) and not job.cancel_requested:
            self._end(job, JobStatus.failed, word.error)
        elif word.manifest is not None and word.updated_at_s < _started_s(job) and (why := self._why_foreign(job)):
            error = JobError("output_conflict", f"the driver refused its output: {why}", "Choose another output.")
            self._end(job, JobStatus.failed, error)
        elif word.manifest is not None:
            complete = word.complete
            if job.spec.get("from_scores") is None and job.attempts == 1:
                self._note_progress(job, complete, stage=job.stage)
            self.store.move(
                job.id,
                JobStatus.succeeded,
                stage="done",
                progress=complete,
                counts=word.counts,
                thresholds=word.thresholds,
            )
        elif job.cancel_requested:
            self._end(job, JobStatus.cancelled, None)
        else:
            hint = "Its log may say why. Resume the job: it goes on where it was."
            self._end(job, JobStatus.failed, JobError("driver_vanished", "the job's driver ended without a word", hint))

    def _note_progress(self, job: Job, now: Progress, **seen: Any) -> None:
        before = self.store.note_progress(job.id, now, **seen)
        # Another attempt counts its tokens anew.
        tokens = now.tokens_done - before.tokens_done if now.tokens_done >= before.tokens_done else now.tokens_done
        self.on_scored(max(now.samples_done - before.samples_done, 0), tokens)

    def _end(self, job: Job, status: JobStatus, error: JobError | None) -> None:
        self.store.move(job.id, status, error=error)

    def _stop(self, job: Job, launcher: Launcher) -> None:
        """Ask the driver to stop, again where that failed; remove it by force after its limit.

        The limit counts from the first try, so that a driver that could not be asked is removed, too.
        """
        reference = dict(job.reference)
        if "stop_since_s" not in reference:
            reference["stop_since_s"] = reference.get("stop_asked_s", time.time())
            self.store.note(job.id, reference=reference)
        limit_s = server_stop_limit_s(job.spec)
        if time.time() - reference["stop_since_s"] > limit_s:
            if "stop_forced_s" not in reference:
                reference["stop_forced_s"] = time.time()
                self.store.note(job.id, reference=reference)
                _log.warning("job %s: its driver did not stop within %.0f s; it is removed by force", job.id, limit_s)
            launcher.stop(reference, at_once=True)
        elif "stop_asked_s" not in reference:
            launcher.stop(reference, at_once=False)
            self.store.note(job.id, reference={**reference, "stop_asked_s": time.time()})

    def _is_silent(self, job: Job, word: DriverWord) -> bool:
        return self.beats.silence_s(_driver(job), word.updated_at_s) > SILENCE_S


def _driver(job: Job) -> str:
    return f"{job.id}:{job.attempts}"


def _started_s(job: Job) -> float:
    return job.started_at.timestamp() if job.started_at is not None else 0.0
