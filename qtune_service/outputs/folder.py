"""The output folder of a job: its layout, who owns it, and what of it is finished.

    OUT/_qtune/job.json            the spec that owns this output, written first
    OUT/_qtune/plan.json           the shards, planned once
    OUT/_qtune/input/              staged chunks of inputs that cannot be split in place
    OUT/_qtune/<stage>/00000.json  a marker a shard, written after the shard's files: what it holds
    OUT/_qtune/partial/00000.arrow scores of a shard that was in hand when the job was told to stop
    OUT/_qtune/lock                who is at work: a file lock, or on an object store a lease
    OUT/_qtune/ranks/              labels and ranks of a population too large for the driver
    OUT/_qtune/progress.json       for whoever follows the job
    OUT/scores|quadrants|pruned|rejected/part-00000.parquet
    OUT/tokenizer/, summary_statistics.json, plane.json, report.html
    OUT/manifest.json              written last: the output is complete

A shard counts as finished when its marker is there. Its files are written before, each atomically, so a crash
in between costs that shard's work and nothing else; writing it again gives the same files.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtune_service import __version__
from qtune_service.config import JobSpec
from qtune_service.data import storage
from qtune_service.errors import OutputConflictError
from qtune_service.outputs.lease import leased

FOLDERS = ("scores", "quadrants", "pruned", "rejected", "tokenizer", "_qtune")
FILES = ("manifest.json", "summary_statistics.json", "plane.json", "report.html")


@dataclass(frozen=True, slots=True)
class Output:
    """Paths below one output folder; local or on an object store."""

    root: str

    def at(self, *parts: str) -> str:
        """URI of something below the output."""
        return storage.join(self.root, *parts)

    def part(self, folder: str, shard: int) -> str:
        """URI of a shard's Parquet file."""
        return self.at(folder, f"part-{shard:05}.parquet")

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest; None while the output is not complete."""
        uri = self.at("manifest.json")
        return storage.read_json(uri) if storage.stat(uri) else None

    def require_manifest(self) -> dict[str, Any]:
        """The manifest of a finished output. Raises OutputConflictError where the output is not complete."""
        if (manifest := self.manifest) is not None:
            return manifest
        started = storage.stat(self.at("_qtune", "job.json")) is not None
        if started:
            what, hint = "holds a job that has not finished", "Run its command again: it continues."
        else:
            what, hint = "holds no output of qtune", "Give the folder that a job wrote, its --output."
        raise OutputConflictError(f"{self.root} {what}", hint)

    # --- markers

    def mark(self, stage: str, shard: int, record: dict[str, Any]) -> None:
        """Note a shard as finished in a stage, with what it holds."""
        storage.write_bytes(self.at("_qtune", stage, f"{shard:05}.json"), json.dumps(record).encode())

    def marker(self, stage: str, shard: int) -> dict[str, Any] | None:
        """A shard's marker; None while it is not finished in a stage."""
        uri = self.at("_qtune", stage, f"{shard:05}.json")
        return storage.read_json(uri) if storage.stat(uri) else None

    def finished(self, stage: str) -> dict[int, dict[str, Any]]:
        """The markers of a stage, by shard."""
        found = self._numbered(stage, "json")
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(found, pool.map(storage.read_json, found.values()), strict=True))

    def _numbered(self, folder: str, ending: str) -> dict[int, str]:
        """Files 00000.ENDING of a working folder by number; not the half-written ones that a crash left there."""
        where = self.at("_qtune", folder)
        names = {uri: storage.relative(uri, where) for uri in storage.list_files(where, recursive=False)}
        matches = {uri: re.fullmatch(rf"(\d+)\.{ending}", name) for uri, name in names.items()}
        return {int(match[1]): uri for uri, match in matches.items() if match}

    def partial_uri(self, shard: int) -> str:
        """Where a shard's scores are kept that a stopped job had so far."""
        return self.at("_qtune", "partial", f"{shard:05}.arrow")

    def partials(self) -> frozenset[int]:
        """Shards with such scores."""
        return frozenset(self._numbered("partial", "arrow"))

    def note_progress(self, body: bytes) -> None:
        """Rewrite progress.json."""
        storage.write_bytes(self.at("_qtune", "progress.json"), body)

    def drop_strays(self, listed: Iterable[str]) -> None:
        """Remove what crashed runs left beside the files of the manifest: half-written parts, and ones of no shard."""
        keep = set(listed)
        for folder in ("scores", "quadrants", "pruned", "rejected"):
            for uri in storage.list_files(self.at(folder), recursive=False):
                name = storage.relative(uri, self.at(folder))
                if f"{folder}/{name}" not in keep and name.lstrip(".").startswith("part-"):
                    storage.remove_file(uri)

    def drop_working_files(self) -> None:
        """Remove what only a running job needs; job.json stays and says whose output this is."""
        for name in ("input", "scored", "partial", "ranks", "pruned"):
            storage.remove_tree(self.at("_qtune", name))
        storage.remove_file(self.at("_qtune", "plan.json"))

    # --- ownership

    def claim(self, spec: JobSpec, model_fingerprint: str) -> None:
        """Make this output the spec's own. Raises OutputConflictError where it holds something else."""
        owner = self.at("_qtune", "job.json")
        if storage.stat(owner):
            self._check_owner(spec, model_fingerprint, storage.read_json(owner))
            return
        foreign = [
            u for u in storage.list_files(self.root, recursive=False) if not u.rsplit("/", 1)[-1].startswith(".")
        ]
        if foreign or any(storage.is_folder(self.at(name)) for name in FOLDERS if name != "_qtune"):
            raise OutputConflictError(
                f"{self.root} is not empty and holds no job of qtune",
                "Choose another --output, or --overwrite to remove an earlier output there.",
            )
        body = {
            "fingerprint": spec.fingerprint(),
            "model_fingerprint": model_fingerprint,
            "version": __version__,
            "spec": spec.model_dump(mode="json"),
        }
        storage.write_json(owner, body)

    def _check_owner(self, spec: JobSpec, model_fingerprint: str, owner: dict[str, Any]) -> None:
        if owner["fingerprint"] == spec.fingerprint() and owner["model_fingerprint"] == model_fingerprint:
            return
        differing = _differences(owner["spec"], spec.model_dump(mode="json")) or ["the files of the model"]
        raise OutputConflictError(
            f"{self.root} belongs to another job; it differs in {', '.join(differing)}",
            "Choose another --output, or --overwrite to start anew. To change only the ratios, reuse its scores:\n"
            f"  qtune prune --from-scores {self.root} --output NEW --sample-keep-ratio R",
        )

    def clear(self) -> None:
        """Remove what a job wrote here, the manifest first. Other files stay."""
        for name in FILES:
            storage.remove_file(self.at(name))
        for name in FOLDERS:
            storage.remove_tree(self.at(name))

    @contextlib.contextmanager
    def locked(self, say: Callable[[str], None] = lambda _: None) -> Iterator[None]:
        """Keep a second driver away. On this machine the lock ends with the process, however that ends."""
        uri = self.at("_qtune", "lock")
        location = storage.resolve(uri)
        with _file_lock(Path(location.path), self.root) if location.is_local else leased(uri, self.root, say):
            yield


@contextlib.contextmanager
def _file_lock(path: Path, root: str) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputConflictError(
                f"another qtune process is writing to {root}",
                "Wait for it, stop it, or choose another --output.",
            ) from error
        yield


def _differences(before: Any, now: Any, prefix: str = "") -> list[str]:
    """Dotted names of the fields that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        names = sorted(set(before) | set(now))
        return [d for n in names for d in _differences(before.get(n), now.get(n), f"{prefix}{n}.")]
    ignored = ("output.", "limits.", "engine.num_actors", "engine.gpus_per_actor", "engine.cpus_per_actor")
    return [] if before == now or prefix.startswith(ignored) else [f"{prefix[:-1]} ({before!r} there, {now!r} here)"]
