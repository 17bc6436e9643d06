"""Make the unfinished output next to this file, which a test resumes.

It was made by commit 698c4a6, the last version that hashed the whole spec. To make it again:

    git worktree add ../earlier 698c4a6
    cd ../earlier && PYTHONPATH=. python $CHECKOUT/tests/earlier_version/make.py $CHECKOUT/tests/earlier_version

The job reads 14 records of the demo in four shards, and its engine dies with the fourth. The paths of the data, the
model and the output are replaced by @DATA@, @MODEL@ and @OUT@ in JSON files.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from qtune_service.config import EngineSpec, InputSpec, JobSpec, ModelSpec, OutputSpec
from qtune_service.errors import EngineError
from qtune_service.pipeline.executor import LocalExecutor
from qtune_service.pipeline.run import run_job
from qtune_service.samples import Sample, TokenScores
from tests.finished_outputs import DrawnScorer, SilentSink
from tests.jobs import DEMO_DATA, DEMO_MODEL

NUM_RECORDS, SHARD_BYTES, SCORED_SHARDS = 14, 1024, 3
MODIFIED_AT_NS = 1_700_000_000_000_000_000
"""Modification time of the data, which the plan records."""


def main(folder: Path) -> None:
    """Run the job until its engine dies, and keep its data and its output."""
    calls = 0
    drawn = DrawnScorer.score

    def score(self: DrawnScorer, samples: Sequence[Sample]) -> list[TokenScores]:
        nonlocal calls
        calls += 1
        if calls > SCORED_SHARDS:
            raise EngineError("the engine died")
        return drawn(self, samples)

    DrawnScorer.score = score  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as work:
        data, out = Path(work) / "data.jsonl", Path(work) / "out"
        data.write_text("".join(f"{line}\n" for line in DEMO_DATA.read_text().splitlines()[:NUM_RECORDS]))
        put_back_time(data)
        spec = JobSpec(
            input=InputSpec(paths=(str(data),), shard_bytes=SHARD_BYTES),
            model=ModelSpec(name=DEMO_MODEL, dtype="float32"),
            engine=EngineSpec(name="tests.finished_outputs:DrawnScorer"),
            output=OutputSpec(path=str(out)),
        )
        try:
            run_job(spec, SilentSink(), executor=LocalExecutor())
        except EngineError as error:
            print(error)  # noqa: T201 - a script
        (out / "_qtune" / "progress.json").unlink()
        shutil.rmtree(out / "tokenizer")  # 200 kB, which a resumed job writes again
        (out / "_qtune" / "tokenizer.json").unlink()
        replace_text(out, {str(data): "@DATA@", DEMO_MODEL: "@MODEL@", str(out): "@OUT@"})
        shutil.copytree(out, folder / "begun", dirs_exist_ok=True)
        shutil.copy(data, folder / "data.jsonl")


def put_back_time(data: Path) -> None:
    """Set the modification time that the plan records."""
    os.utime(data, ns=(MODIFIED_AT_NS, MODIFIED_AT_NS))


def replace_text(out: Path, texts: dict[str, str]) -> None:
    """Replace texts in the JSON files of an output."""
    for path in out.rglob("*.json"):
        body = path.read_text()
        for before, after in texts.items():
            body = body.replace(json.dumps(before)[1:-1], json.dumps(after)[1:-1])
        path.write_text(body)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
