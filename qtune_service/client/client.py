"""`Client`: one method for each operation of the service.

    with Client("https://qtune.example.org") as client:
        job = client.submit({"input": {"paths": ["/data/sft.jsonl"]}, "model": {"name": "/models/base"}})
        if client.wait(job.id).status == "succeeded":
            client.download(job.id, "out", PRODUCT)

Responses are parsed into the models of `wire.py`. Errors are raised as the classes of `qtune_service.errors`, or as
ApiError where the error code has no class there.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self
from urllib.parse import quote, unquote

from qtune_service.client import events, transfer
from qtune_service.client.profiles import find_address
from qtune_service.client.transfer import Watcher
from qtune_service.client.transport import Connection
from qtune_service.config import JobSpec, PruneSpec
from qtune_service.errors import NotFoundError
from qtune_service.job_states import JobStatus
from qtune_service.spec_files import validated
from qtune_service.wire import (
    DatasetPage,
    DatasetView,
    FileView,
    JobListItem,
    JobPage,
    JobRequest,
    JobView,
    PreviewRequest,
    PreviewView,
    RejectedView,
    RepruneRequest,
    SamplesView,
    ServerView,
)

RESTART_S = 600.0
"""Longest time to wait for an unreachable server while following a job."""
PREVIEW_S = 120.0
"""Timeout of a preview: the server loads a tokenizer in a child process, and previews may queue."""


class Client:
    """Access to one server with one token. Threads may share an instance."""

    def __init__(
        self,
        url: str | None = None,
        token: str | None = None,
        *,
        profile: str | None = None,
        plain_http: bool = False,
        timeout_s: float = 30.0,
        patience_s: float = 60.0,
    ) -> None:
        """Find the address and token as profiles.py does. patience_s: how long requests are retried."""
        address = find_address(url, token, profile=profile, plain_http=plain_http)
        self._connection = Connection(address, timeout_s=timeout_s, patience_s=patience_s)

    @property
    def url(self) -> str:
        """Return the URL of the server."""
        return self._connection.address.url

    def close(self) -> None:
        """Close all connections."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- jobs

    def submit(
        self,
        spec: JobRequest | JobSpec | Mapping[str, Any],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> JobView:
        """Queue a job. A missing idempotency key is generated, so that a retried request creates one job."""
        body = _plain(spec)
        if name is not None:
            body["name"] = name
        return self._new_job("/jobs", _plain(validated(JobRequest, body, "job")), idempotency_key)

    def reprune(
        self,
        job_id: str,
        prune: PruneSpec | Mapping[str, Any],
        *,
        name: str | None = None,
        idempotency_key: str | None = None,
    ) -> JobView:
        """Queue a job that prunes the scores of a finished job again. It takes seconds."""
        body = {"prune": _plain(prune), **({} if name is None else {"name": name})}
        path = f"{_job(job_id)}/reprune"
        return self._new_job(path, _plain(validated(RepruneRequest, body, "reprune")), idempotency_key)

    def preview(self, spec: JobRequest | JobSpec | Mapping[str, Any], n: int = 5) -> PreviewView:
        """Return the first samples as the model will see them, without running a job."""
        body = _plain(validated(PreviewRequest, {**_plain(spec), "n": n}, "preview"))
        response = self._connection.request("POST", "/preview", json=body, is_safe=True, timeout=PREVIEW_S)
        return PreviewView.model_validate_json(response.content)

    def get(self, job_id: str) -> JobView:
        """Return the current state of a job."""
        return JobView.model_validate_json(self._get(_job(job_id)))

    def list(self, status: Sequence[JobStatus | str] = (), q: str = "") -> Iterator[JobListItem]:
        """Return jobs, newest first, fetched page by page. Items have no spec: see `get`.

        q: part of the name, or the beginning of the id.
        """
        for body in self._pages("/jobs", status=[str(one) for one in status], q=q):
            yield from JobPage.model_validate_json(body).jobs

    def cancel(self, job_id: str) -> JobView:
        """Stop a job. Shards in progress are saved."""
        return JobView.model_validate_json(self._connection.request("POST", f"{_job(job_id)}/cancel").content)

    def resume(self, job_id: str) -> JobView:
        """Queue a failed or cancelled job again."""
        return JobView.model_validate_json(self._connection.request("POST", f"{_job(job_id)}/resume").content)

    def delete(self, job_id: str, *, keep_output: bool = False) -> str:
        """Delete a finished job and its output. Return the reason if the output was kept, else an empty string.

        The server removes an output only if the output's own record names this job and no other job uses it.
        """
        response = self._connection.request("DELETE", _job(job_id), params={"keep_output": keep_output})
        return unquote(response.headers.get("X-Output-Kept", ""))

    # --- progress and logs

    def watch(
        self, job_id: str, *, lost: Callable[[], None] = lambda: None, restart_s: float = RESTART_S
    ) -> Iterator[JobView]:
        """Yield the job now and at every change until it ends, across lost connections and server restarts.

        lost: called when the connection breaks. restart_s: how long the server may be unreachable.
        """
        return events.follow(self._connection, _job(job_id), patience_s=restart_s, lost=lost)

    def wait(self, job_id: str, timeout_s: float | None = None) -> JobView:
        """Wait until the job ends, and return it whatever its status. Raises WaitTimeoutError."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        patience_s = RESTART_S if timeout_s is None else min(RESTART_S, timeout_s)
        *_, last = events.follow(self._connection, _job(job_id), deadline=deadline, patience_s=patience_s)
        return last

    def logs(self, job_id: str, *, tail: int | None = None, follow: bool = False) -> Iterator[str]:
        """Yield the lines of the driver's log, without line ends; with follow, until the job ends.

        Following from the beginning survives lost connections. With tail, a lost connection raises UnreachableError.
        """
        if follow and tail is None:
            return events.follow_log(self._connection, _job(job_id), patience_s=RESTART_S)
        return events.read_log(self._connection, _job(job_id), tail, is_followed=follow)

    # --- results

    def summary(self, job_id: str) -> dict[str, Any]:
        """Return the summary statistics of a finished job."""
        return self._json(f"{_job(job_id)}/summary")

    def plane(self, job_id: str) -> dict[str, Any]:
        """Return the error-uncertainty plane: histogram, thresholds, and the curve of kept samples by ratio."""
        return self._json(f"{_job(job_id)}/plane")

    def samples(
        self,
        job_id: str,
        *,
        quadrant: Literal["Q1", "Q2", "Q3", "Q4"] | None = None,
        kept: bool | None = None,
        where: str | None = None,
        sort: str | None = None,
        limit: int = 10,
        offset: int = 0,
    ) -> SamplesView:
        """Return samples with their tokens and scores. where: a condition in SQL."""
        params = {"quadrant": quadrant, "kept": kept, "where": where, "sort": sort, "limit": limit, "offset": offset}
        return SamplesView.model_validate_json(self._get(f"{_job(job_id)}/samples", **params))

    def sample(self, job_id: str, sample_id: str) -> dict[str, Any]:
        """Return one sample with its tokens and scores."""
        return self._json(f"{_job(job_id)}/samples/{_part(sample_id)}")

    def rejected(self, job_id: str, *, reason: str | None = None, limit: int = 10, offset: int = 0) -> RejectedView:
        """Return rejected records, and their number by reason."""
        body = self._get(f"{_job(job_id)}/rejected", reason=reason, limit=limit, offset=offset)
        return RejectedView.model_validate_json(body)

    def report(self, job_id: str) -> str:
        """Return the report as HTML."""
        return self._get(f"{_job(job_id)}/report").decode()

    def files(self, job_id: str) -> tuple[FileView, ...]:
        """List the files of a finished job."""
        listed = self._connection.request("GET", f"{_job(job_id)}/files").json()
        return tuple(FileView.model_validate(file) for file in listed)

    def download(
        self,
        job_id: str,
        folder: str | Path,
        files: str | Sequence[str] | None = None,
        *,
        parallel: int = 8,
        watcher: Watcher | None = None,
    ) -> tuple[Path, ...]:
        """Download files into a folder, by default all; patterns as `pruned/*`. A repeated call resumes."""
        patterns = (files,) if isinstance(files, str) else files
        chosen = transfer.choose(self.files(job_id), patterns)
        return transfer.download(
            self._connection, _job(job_id), chosen, Path(folder), parallel=parallel, watcher=watcher
        )

    # --- datasets and the server

    def upload(self, path: str | Path, name: str | None = None, *, watcher: Watcher | None = None) -> DatasetView:
        """Upload a file as a dataset. Jobs reference it by its `uri`."""
        response = transfer.upload(self._connection, Path(path), name, watcher)
        return DatasetView.model_validate_json(response.content)

    def datasets(self) -> Iterator[DatasetView]:
        """Yield datasets, newest first, fetched page by page."""
        for body in self._pages("/datasets"):
            yield from DatasetPage.model_validate_json(body).datasets

    def delete_dataset(self, dataset: str) -> None:
        """Delete a dataset by id or URI. The server refuses while a queued or running job reads it."""
        self._connection.request("DELETE", f"/datasets/{_part(dataset.removeprefix('dataset://'))}")

    def server(self) -> ServerView:
        """Return the limits and launchers that the server offers."""
        return ServerView.model_validate_json(self._get("/server"))

    # --- helpers

    def _new_job(self, path: str, body: Mapping[str, Any], key: str | None) -> JobView:
        headers = {"Idempotency-Key": key or uuid.uuid4().hex}
        response = self._connection.request("POST", path, json=body, headers=headers, is_safe=True)
        return JobView.model_validate_json(response.content)

    def _get(self, path: str, **params: Any) -> bytes:
        given = {name: value for name, value in params.items() if value not in (None, "")}
        return self._connection.request("GET", path, params=given).content

    def _pages(self, path: str, **params: Any) -> Iterator[bytes]:
        cursor = None
        while True:
            body = self._get(path, **params, cursor=cursor)
            yield body
            if (cursor := json.loads(body)["next_cursor"]) is None:
                return

    def _json(self, path: str) -> dict[str, Any]:
        body: dict[str, Any] = self._connection.request("GET", path).json()
        return body


def _plain(spec: Any) -> dict[str, Any]:
    """Return the fields that are set. The server chooses the others."""
    return dict(spec) if isinstance(spec, Mapping) else spec.model_dump(mode="json", exclude_unset=True)


def _part(text: str) -> str:
    """Quote a path segment. Raises NotFoundError for an empty segment and for dots."""
    if text in ("", ".", ".."):
        raise NotFoundError(f"{text!r} is not an id", "Give the id of a job, dataset or sample.")
    return quote(text, safe="")


def _job(job_id: str) -> str:
    return f"/jobs/{_part(job_id)}"
