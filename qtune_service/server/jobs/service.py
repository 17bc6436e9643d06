"""Accept jobs, start queued ones, follow running ones, and record how they end.

`JobService.tick` does one round and is called every second. It reads the database, the status files in the
outputs and the launchers, and keeps no essential state in memory. So a server that is killed at any point can be
replaced by a new one, and several servers on one database start each job once.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from qtune_service.config import JobSpec
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
from qtune_service.server.jobs.driver_status import DriverStatus, Heartbeats, read_driver_status
from qtune_service.server.jobs.policy import Policy
from qtune_service.server.jobs.store import JobStore, NewJob
from qtune_service.server.launchers.base import DriverState, Launcher, server_stop_limit_s
from qtune_service.spec_files import parse_spec

SILENCE_S = 30.0
"""A driver on another host that has written nothing for this long counts as ended."""
LAUNCH_LIMIT_S = 60.0
"""A job fails when its launcher has not answered for this long."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobService:
    """Jobs in a store, and the launchers that run them."""

    store: JobStore
    launchers: Mapping[str, Launcher]
    max_running: int = 1
    datasets_root: str = ""
    """Folder or URI of the datasets that `dataset://ID` refers to."""
    policy: Policy | None = None
    """Paths, models and code that jobs may use. None allows everything, for tests."""
    on_scored: Callable[[int, int], None] = lambda _samples, _tokens: None
    """Called with the numbers of samples and tokens that were scored since the last call."""
    heartbeats: Heartbeats = field(default_factory=Heartbeats)

    def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Queue a job and return it with True, or an earlier submission of it with False.

        Raise OutputConflictError where its output belongs to another job, and the errors of `JobStore.create`.
        """
        if new.output.rpartition("/")[2] != new.id:
            self._require_own_output(new)
        return self.store.create(new)

    def _require_own_output(self, new: NewJob) -> None:
        """Raise OutputConflictError for an output with the record of another spec, even if no server knows that job."""
        recorded = Output(new.output, may_be_link=False).owner()
        if recorded is not None and not self._is_of(recorded, new.spec):
            hint = "Choose another output. To prune the scores of this one again, use from_scores."
            raise OutputConflictError(f"{new.output} belongs to another job", hint)

    def cancel(self, job_id: str) -> Job:
        """Cancel a queued job immediately, or a running one after its driver has saved the shards in progress."""
        return self.store.request_cancel(job_id)

    def resume(self, job_id: str) -> Job:
        """Queue a failed or cancelled job again. Its driver continues with the unfinished shards.

        Raise NotAllowedError where the present policy forbids it, NotFoundError and IllegalMoveError.
        """
        self._settled(self.store.get(job_id))
        return self.store.move(job_id, JobStatus.queued)

    def delete(self, job_id: str, *, keep_output: bool = False) -> str:
        """Delete an ended job, its log and its output. Return the reason why the output was kept, or an empty text.

        The output is cleared only where its own record belongs to this job and no other job has it. Raise
        IllegalMoveError, and OutputConflictError while another process works on the output.
        """
        job = self.store.get(job_id)
        output = Output(job.output, may_be_link=False)
        why_kept = "as requested" if keep_output else self._why_kept(job)
        if why_kept:
            self.store.delete(job_id)
        else:
            with output.locked(on_lost=lambda: _log.error("lost the lease of %s while removing it", job.output)):
                self.store.delete(job_id)  # first, because it can be refused. The lock excludes other processes
                clear(output)
        if (launcher := self.launchers.get(job.launcher)) is not None:
            launcher.forget(job)
        if why_kept and not keep_output:
            _log.warning("job %s was deleted; its output %s was kept: %s", job_id, job.output, why_kept)
        return why_kept

    def _why_kept(self, job: Job) -> str:
        """Return the reason to keep the output of a deleted job, or an empty text."""
        if others := self.store.sharing_output(job.output, other_than=job.id):
            return f"job {others[0]} also uses it"
        if why := self._why_foreign(job):
            return why
        creator = Output(job.output, may_be_link=False).owning_job()
        return "" if creator in (job.id, None) else f"{f'job {creator}' if creator else 'a command'} created it"

    def _why_foreign(self, job: Job) -> str:
        """Return the reason why an output does not belong to this job by its own record, or an empty text."""
        try:
            recorded = Output(job.output, may_be_link=False).owner()
        except (OutputConflictError, DamagedFileError) as error:
            return error.message
        if recorded is None:
            return "it has no record of a job"
        return "" if self._is_of(recorded, job.spec) else "its own record belongs to another job"

    def _is_of(self, recorded: JobSpec, spec: Mapping[str, Any]) -> bool:
        """Return whether a recorded spec matches a job's. A spec that this version cannot read matches none."""
        try:
            expected = JobSpec.model_validate(resolved(spec, self.datasets_root))
        except ValidationError:
            return False
        return recorded.fingerprint() == expected.fingerprint()

    def _settled(self, job: Job) -> Mapping[str, Any]:
        """Return the job's spec, settled by the present policy. Raise NotAllowedError and SpecError."""
        if self.policy is None:
            return job.spec
        return self.policy.settle(parse_spec(dict(job.spec), where=f"job {job.id}")).model_dump(mode="json")

    def variables(self) -> dict[str, str]:
        """Return environment variables that give a driver the allowed roots of input files."""
        if self.policy is None:
            return {}
        return {INPUT_ROOTS: json.dumps([*self.policy.inputs, self.datasets_root])}

    def log(self, job: Job, start: int = 0) -> Iterator[bytes]:
        """Yield the log of a job from byte `start` on. Raise NotFoundError where this server lacks its launcher."""
        try:
            return self._launcher(job).log(job, start)
        except LaunchError as error:
            raise NotFoundError(
                f"this server does not have the log of job {job.id}: {error.message}", error.hint
            ) from error

    def tick(self) -> None:
        """Follow all running jobs and start queued ones up to the limit. An error of one job does not affect others."""
        running = self.store.running()
        self.heartbeats.keep_only({_driver(job) for job in running})
        for job in running:
            try:
                self._follow(job)
            except DatabaseError:
                raise
            except (LaunchError, OSError) as error:
                _log.warning("job %s could not be followed: %s", job.id, error)
            except (IllegalMoveError, NotFoundError):
                continue  # another server has handled it
            except Exception:  # noqa: BLE001 - logged with its traceback; other jobs continue
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
            self._wait_for_launcher(job, error)
        except QTuneError as error:
            self._end(job, JobStatus.failed, JobError("launch_failed", error.message, error.hint))
        else:
            self.store.note(job.id, reference=dict(reference))

    def _launcher(self, job: Job) -> Launcher:
        if (launcher := self.launchers.get(job.launcher)) is None:
            known = ", ".join(self.launchers) or "none"
            raise LaunchError(f"this server has no launcher {job.launcher!r}", f"It has: {known}.")
        return launcher

    def _wait_for_launcher(self, job: Job, error: LauncherAwayError) -> None:
        """Keep the job for `_adopt` to start until LAUNCH_LIMIT_S is over. It stays the same attempt.

        The lost call may have started a driver, which the launcher finds by the attempt.
        """
        if time.time() - _started_s(job) < LAUNCH_LIMIT_S:
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
        # The launcher comes first, so that the last status of an ended driver can be read.
        state = launcher.state(job.reference) if launcher is not None else DriverState.elsewhere
        status = read_driver_status(job.output, before=job.progress, attempt=_driver(job))
        self._note_progress(job, status.progress, stage=status.stage or job.stage)
        is_gone = state is DriverState.ended
        if state is DriverState.elsewhere:
            is_gone = self.heartbeats.silence_s(_driver(job), status.updated_at_s) > SILENCE_S
        if is_gone:
            self._conclude(job, status)
        elif job.cancel_requested and launcher is not None:
            self._stop(job, launcher)

    def _adopt(self, job: Job) -> None:
        """Start a claimed job that has no driver, once the server that claimed it has had time to do so."""
        if job.started_at is None or time.time() - job.started_at.timestamp() > SILENCE_S / 2:
            self._start(job)

    def _conclude(self, job: Job, status: DriverStatus) -> None:
        """Record the end of a driver by its status. Its error has priority: the manifest may be another job's."""
        is_own = status.is_by(_driver(job), _started_s(job))
        if status.damage is not None:
            self._end(job, JobStatus.failed, status.damage)
        elif status.error is not None and is_own and not job.cancel_requested:
            self._end(job, JobStatus.failed, status.error)
        elif status.manifest is not None and not is_own and (why := self._why_foreign(job)):
            error = JobError("output_conflict", f"the driver refused the output: {why}", "Choose another output.")
            self._end(job, JobStatus.failed, error)
        elif status.manifest is not None:
            complete = status.complete
            if job.spec.get("from_scores") is None and job.attempts == 1:
                self._note_progress(job, complete, stage=job.stage)
            self.store.move(
                job.id,
                JobStatus.succeeded,
                stage="done",
                progress=complete,
                counts=status.counts,
                thresholds=status.thresholds,
            )
        elif job.cancel_requested:
            self._end(job, JobStatus.cancelled, None)
        else:
            message = "the driver process exited without reporting a result"
            hint = "Check its log. Resume the job to continue from the finished shards."
            self._end(job, JobStatus.failed, JobError("driver_vanished", message, hint))

    def _note_progress(self, job: Job, now: Progress, **columns: Any) -> None:
        before = self.store.note_progress(job.id, now, **columns)
        # Another attempt counts its tokens from zero.
        tokens = now.tokens_done - before.tokens_done if now.tokens_done >= before.tokens_done else now.tokens_done
        self.on_scored(max(now.samples_done - before.samples_done, 0), tokens)

    def _end(self, job: Job, status: JobStatus, error: JobError | None) -> None:
        self.store.move(job.id, status, error=error)

    def _stop(self, job: Job, launcher: Launcher) -> None:
        """Ask the driver to stop, repeat this where it failed, and kill the driver after its time limit.

        The limit counts from the first try, so that a driver that could not be reached is killed too.
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
                _log.warning("job %s: the driver did not stop within %.0f s and is killed", job.id, limit_s)
            launcher.stop(reference, force=True)
        elif "stop_asked_s" not in reference:
            launcher.stop(reference, force=False)
            self.store.note(job.id, reference={**reference, "stop_asked_s": time.time()})


def _driver(job: Job) -> str:
    """Return a name of the present driver of a job."""
    return f"{job.id}:{job.attempts}"


def _started_s(job: Job) -> float:
    return job.started_at.timestamp() if job.started_at is not None else 0.0
