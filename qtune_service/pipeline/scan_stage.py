"""Scan the chunks of an input: a small one in the driver, else in batches on the workers, each with a marker.

A marker holds the results of a batch, and its name is a digest of the chunks, with the sizes and versions of their
files. So a driver that starts again takes over what is unchanged and repeats what was in progress. The markers are not
part of the plan: they are removed with the other working files.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from pydantic import TypeAdapter, ValidationError

from qtune_service.config import JobSpec
from qtune_service.errors import StorageError
from qtune_service.ingest.planner import Chunk, ChunkScan, scan
from qtune_service.output.layout import Output
from qtune_service.pipeline.executor import Executor, LocalExecutor, Stage
from qtune_service.pipeline.progress import Tracker
from qtune_service.pipeline.stall_watch import Reason, reading_text, steps_look, watching
from qtune_service.storage import file_io

SMALL_INPUT_BYTES, SMALL_INPUT_CHUNKS = 32 << 20, 512
"""The driver scans an input up to this size itself, in less time than a worker takes to start."""
BATCH_BYTES, BATCH_CHUNKS, BATCHES_WANTED = 64 << 20, 512, 64
"""Largest batch, and the number of batches below which they are smaller."""
BATCHES_A_PROCESS = 8
SMALL_CHUNK_BYTES, THREADS = 1 << 20, 16
"""Chunks up to this size are read by threads, because they take less time than a request for them."""
MARKERS = "scanned"
"""Folder of `_qtune` with the markers."""
FORMAT = b"1"
"""Increased when scans of the same chunks have other results."""


class Scans:
    """Scans the chunks of one job."""

    def __init__(self, spec: JobSpec, output: Output, executor: Executor, tracker: Tracker) -> None:
        self._spec, self._output, self._tracker = spec, output, tracker
        self._executor = executor

    def run(self, chunks: Sequence[Chunk]) -> dict[int, ChunkScan]:
        """Scan chunks and return the results by chunk."""
        if _is_small(chunks):
            stage = Stage("plan", scan_chunks, (self._spec, False))
            together = [chunks[at : at + THREADS] for at in range(0, len(chunks), THREADS)]
            return self._collect(LocalExecutor(), together, stage)
        batches = {_digest(batch): batch for batch in batched(chunks)}
        done = self._read_markers(batches)
        self._tracker.advance(sum(map(len, done.values())))
        left = [batch for name, batch in batches.items() if name not in done]
        stage = Stage("plan", scan_chunks, (self._spec, True), shards_per_task=BATCHES_A_PROCESS, on_cpu_nodes=True)
        earlier = {scan.index: scan for scans in done.values() for scan in scans}
        return earlier | self._collect(self._executor, left, stage)

    def _collect(self, executor: Executor, batches: Sequence[Sequence[Chunk]], stage: Stage) -> dict[int, ChunkScan]:
        unread = {chunk.index: chunk for batch in batches for chunk in batch}
        found: dict[int, ChunkScan] = {}

        def look_at_unread() -> tuple[Reason, str]:
            return "reading", reading_text(list(unread.values()))

        with watching(self._tracker, steps_look(executor, stage.num_cpus, look_at_unread)):
            for result in executor.run(list(enumerate(batches)), stage):
                for one in result.value:
                    found[one.index] = one
                    del unread[one.index]
                self._tracker.advance(len(result.value))
        return found

    def _read_markers(self, batches: Iterable[str]) -> dict[str, list[ChunkScan]]:
        stored = set(self._output.list_files("_qtune", MARKERS))
        names = [name for name in batches if f"{name}.json" in stored]
        with ThreadPoolExecutor(THREADS) as pool:
            read = pool.map(self._read_marker, names)
            return {name: scans for name, scans in zip(names, read, strict=True) if scans is not None}

    def _read_marker(self, name: str) -> list[ChunkScan] | None:
        """Return the results of a batch, or None for a marker that cannot be read, so that it is scanned again."""
        try:
            return _results().validate_json(self._output.read_bytes("_qtune", MARKERS, f"{name}.json"))
        except (ValidationError, StorageError):
            return None


def batched(chunks: Sequence[Chunk]) -> Iterator[list[Chunk]]:
    """Yield chunks in batches: up to BATCH_BYTES, and enough batches for all cores of a small cluster."""
    sizes = [min(chunk.stop - chunk.start, chunk.file.size_bytes) for chunk in chunks]
    max_bytes = min(BATCH_BYTES, sum(sizes) // BATCHES_WANTED)
    max_chunks = min(BATCH_CHUNKS, max(len(chunks) // BATCHES_WANTED, 1))
    batch: list[Chunk] = []
    size = 0
    for chunk, of_chunk in zip(chunks, sizes, strict=True):
        if batch and (size + of_chunk > max_bytes or len(batch) == max_chunks):
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += of_chunk
    if batch:
        yield batch


def scan_chunks(_index: int, chunks: Sequence[Chunk], spec: JobSpec, marks: bool) -> list[ChunkScan]:
    """Scan a batch of chunks, and write its marker if wanted."""
    output = Output(spec.output.path)
    one = functools.partial(scan, spec=spec.input, work=output.at("_qtune", "input"))
    if len(chunks) > 1 and max(chunk.file.size_bytes for chunk in chunks) <= SMALL_CHUNK_BYTES:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="scan") as pool:
            scans = list(pool.map(one, chunks))
    else:
        scans = list(map(one, chunks))
    if marks:
        uri = output.at("_qtune", MARKERS, f"{_digest(chunks)}.json")
        file_io.write_bytes(uri, _results().dump_json(scans))
    return scans


def _is_small(chunks: Sequence[Chunk]) -> bool:
    size = sum({chunk.file.uri: chunk.file.size_bytes for chunk in chunks}.values())
    return size <= SMALL_INPUT_BYTES and len(chunks) <= SMALL_INPUT_CHUNKS


def _digest(chunks: Sequence[Chunk]) -> str:
    return hashlib.sha256(FORMAT + _chunks().dump_json(list(chunks))).hexdigest()[:32]


@functools.cache
def _chunks() -> TypeAdapter[list[Chunk]]:
    return TypeAdapter(list[Chunk])


@functools.cache
def _results() -> TypeAdapter[list[ChunkScan]]:
    return TypeAdapter(list[ChunkScan])
