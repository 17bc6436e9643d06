"""Starting points of an output: the tokenizer that made its tokens, and scores taken over from an earlier output."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qtune_service.config import JobSpec
from qtune_service.errors import SpecError
from qtune_service.output.file_lists import part_files
from qtune_service.output.layout import Output
from qtune_service.pipeline.score_stage import Scored
from qtune_service.storage import file_io
from qtune_service.tokenize.encoder import Encoder


def save_tokenizer(encoder: Encoder, output: Output) -> None:
    """Keep the tokenizer with the output, so that reports and exports need nothing else."""
    recorded = (output.read_object("_qtune", "tokenizer.json") or {}).get("files")
    if recorded and set(recorded) <= set(output.tokenizer_files()):
        return
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_tokenizer(Path(folder))
        paths = sorted(file.relative_to(folder).as_posix() for file in Path(folder).rglob("*") if file.is_file())
        output.record("tokenizer", paths)
        for path in paths:
            file_io.write_bytes(output.at("tokenizer", path), Path(folder, path).read_bytes())


def adopt_scores(spec: JobSpec, output: Output) -> Scored:
    """Give the score shards of a finished output a place in this one: hard links, or copies across filesystems.

    Raises SpecError where the spec asks for other scores than the earlier output has, and OutputConflictError where
    the earlier output names files that are not inside it.
    """
    assert spec.from_scores is not None
    origin = Output(spec.from_scores)
    manifest = origin.require_manifest()
    earlier = JobSpec.model_validate(manifest["spec"])
    if (earlier.input, earlier.model) != (spec.input, spec.model):
        raise SpecError(
            f"from_scores: {spec.from_scores} was scored from another input or model",
            "Only `prune` and `output` may differ from the earlier job.",
        )
    parts = [file.path for file in part_files(manifest, "scores", "rejected")]
    tokenizer = origin.tokenizer_files()
    output.record("adopted", parts)
    output.record("tokenizer", tokenizer)
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda path: output.adopt(origin, path), [*parts, *(f"tokenizer/{name}" for name in tokenizer)]))
    return Scored.from_manifest(manifest)
