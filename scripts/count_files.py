"""Count the files that a reader opens to follow a record, or a job, through the package.

A small job runs under LocalExecutor with the reference engine, and a profile function notes each call of a function of
qtune_service, on all threads. Code that runs at import, class bodies and properties are not counted. Definitions:

    record  from the reader to its scores: the files of ingest, tokenize and scoring with a function that runs within
            `read_shard`, `Encoder.encode_columns` or a step of `ScoringCall`. It is measured on the second shard, so
            loading the plan, the tokenizer and the model is left out.
    bounces pairs of those files that call each other, so that a reader goes back and forth
    job     from `run_job` to the first pruned shard: all files with a function that runs, including the record's,
            storage and errors

    python scripts/count_files.py
"""

from __future__ import annotations

import functools
import inspect
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

REPO = Path(__file__).resolve().parent.parent
PACKAGE = REPO / "qtune_service"
DATA_STAGES = ("ingest", "tokenize", "scoring")
RECORD_PATH = {"read_shard", "Encoder.encode_columns", "ScoringCall.prepare", "ScoringCall.run", "ScoringCall.finish"}
MAX_RECORD_FILES, MAX_JOB_FILES, MAX_BOUNCES = 14, 72, 1
"""The bounce: `ScoringCall` calls the engine, which calls helpers of the same module."""


@dataclass(slots=True)
class Paths:
    """Files in the order of their first call."""

    record: dict[str, None] = field(default_factory=dict)
    job: dict[str, None] = field(default_factory=dict)
    calls: set[tuple[str, str]] = field(default_factory=set)
    """(file of the caller, file of the callee) on the record's path."""

    @property
    def bounces(self) -> list[tuple[str, str]]:
        """Return the pairs of files that call each other."""
        return sorted((a, b) for a, b in self.calls if a < b and (b, a) in self.calls)


class Tracer:
    """A profile function that notes calls."""

    def __init__(self) -> None:
        self.paths = Paths()
        self._depth = threading.local()
        self._is_second_shard = self._is_pruned = False

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Take an event of `sys.setprofile`."""
        if event not in ("call", "return") or (name := counted(frame.f_code)) is None:
            return
        function = frame.f_code.co_qualname
        self._follow_stages(function, frame.f_locals.get("index"), event)
        depth = getattr(self._depth, "value", 0)
        if function in RECORD_PATH:
            self._depth.value = depth = depth + (1 if event == "call" else -1)
        if event == "return":
            return
        if not self._is_pruned:
            self.paths.job.setdefault(name)
        if depth and self._is_second_shard and name.startswith(DATA_STAGES):
            self.paths.record.setdefault(name)
            if (caller := _caller(frame)) not in (None, name):
                self.paths.calls.add((str(caller), name))

    def _follow_stages(self, function: str, index: int | None, event: str) -> None:
        if (function, index, event) == ("encode_shard", 1, "call"):
            self._is_second_shard = True
        elif (function, index, event) == ("ScoreShard.__call__", 1, "return"):
            self._is_second_shard = False
        elif (function, event) == ("prune_shard", "return"):
            self._is_pruned = True


@functools.cache
def counted(code: CodeType) -> str | None:
    """Return the file of a function of the package, below the package. None of other code."""
    path = Path(code.co_filename)
    if not path.is_relative_to(PACKAGE) or not code.co_flags & inspect.CO_OPTIMIZED or _is_property(code, path):
        return None
    return str(path.relative_to(PACKAGE))


def _is_property(code: CodeType, path: Path) -> bool:
    owner, _, name = code.co_qualname.rpartition(".")
    module = sys.modules.get(".".join(path.relative_to(REPO).with_suffix("").parts))
    found = vars(getattr(module, owner, None) or object).get(name) if owner.isidentifier() else None
    return isinstance(found, (property, functools.cached_property))


def _caller(frame: FrameType) -> str | None:
    """Return the nearest file of the data stages that the call comes from."""
    above = frame.f_back
    while above is not None:
        name = counted(above.f_code)
        if name is not None:
            return name if name.startswith(DATA_STAGES) else None
        above = above.f_back
    return None


class _SilentSink:
    def show(self, snapshot: object) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self) -> None: ...


def trace_job() -> Paths:
    """Run a job over the first demo records, and return the files that it entered."""
    from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
    from qtune_service.pipeline.executor import LocalExecutor
    from qtune_service.pipeline.run import run_job

    demo, tracer = REPO / "examples" / "demo", Tracer()
    with tempfile.TemporaryDirectory() as folder:
        spec = JobSpec(
            input=InputSpec(paths=(str(demo / "data.jsonl"),), limit=30, shard_bytes=4096),
            model=ModelSpec(name=str(demo / "model"), dtype="float32"),
            engine=EngineSpec(name="reference"),
            output=OutputSpec(path=f"{folder}/out"),
        )
        threading.setprofile(tracer)
        sys.setprofile(tracer)
        try:
            run_job(spec, _SilentSink(), executor=LocalExecutor())
        finally:
            sys.setprofile(None)
            threading.setprofile(None)
    return tracer.paths


def main() -> int:
    """Print both paths. Return 1 where a limit is passed."""
    paths = trace_job()
    for title, files, limit in (("record", paths.record, MAX_RECORD_FILES), ("job", paths.job, MAX_JOB_FILES)):
        print(f"{title}: {len(files)} files (at most {limit})")
        print("\n".join(f"    {name}" for name in files))
    print(f"bounces: {len(paths.bounces)} (at most {MAX_BOUNCES})")
    print("\n".join(f"    {a} <-> {b}" for a, b in paths.bounces))
    return int(
        len(paths.record) > MAX_RECORD_FILES or len(paths.job) > MAX_JOB_FILES or len(paths.bounces) > MAX_BOUNCES
    )


if __name__ == "__main__":
    sys.exit(main())
