"""A server with a secret beside what it allows, and outputs that a test may change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from qtune_service.job_states import JobStatus
from qtune_service.output.reader import FinishedOutput
from qtune_service.server.jobs.ids import new_id
from tests.api.servers import scripted, serving, settings
from tests.api.stored import database_of, store_job

SECRET = "root:x:0:0:top secret"


@dataclass(frozen=True, slots=True)
class Site:
    """A server with scripted drivers, its folder, and in this one a secret beside what it allows."""

    client: httpx.Client
    folder: Path

    def finished_job(self, finished: FinishedOutput) -> tuple[str, Path]:
        """Add a job with a copy of an output; return both."""
        root = copied(finished, self.folder / "outputs" / new_id())
        spec = finished.spec.model_dump(mode="json")
        return store_job(database_of(self.folder), str(root), JobStatus.succeeded, spec), root


@contextmanager
def made_site(folder: Path) -> Iterator[Site]:
    """Run the server in a folder, with everything in it that could lead out of what is allowed."""
    (folder / "secret.txt").write_text(SECRET)
    inputs = folder / "inputs"
    for below in (inputs / "{", inputs / "[a]", folder / "outputs" / "{", folder / "outputs" / "*"):
        below.mkdir(parents=True)
    (inputs / "link").symlink_to(folder / "secret.txt")
    (inputs / "[a]" / "link").symlink_to(folder / "secret.txt")
    (folder / "outputs" / "*" / "link").symlink_to(folder)
    (inputs / "second-order").write_text(str(folder / "secret.txt"))
    (inputs / "binary").write_bytes(b"{{\xff" + SECRET.encode())
    os.mkfifo(inputs / "fifo")
    for loop in (inputs / "loop", folder / "outputs" / "loop"):
        loop.symlink_to(loop)
    acts = ("succeed", "sleep 1", "sleep")
    with serving(settings(folder, allowed_models=acts, max_running_jobs=8), scripted(folder)) as client:
        yield Site(client, folder)


def copied(finished: FinishedOutput, to: Path) -> Path:
    """Copy an output that a test may change."""
    shutil.copytree(finished.root, to)
    return to
