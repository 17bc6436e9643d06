"""Starting points of an output: the tokenizer that made its tokens, and scores taken over from an earlier output."""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from qtune_service.config import JobSpec
from qtune_service.data import storage
from qtune_service.data.chat import Encoder
from qtune_service.errors import SpecError
from qtune_service.outputs.folder import Output
from qtune_service.pipeline.scored import Scored


def save_tokenizer(encoder: Encoder, output: Output) -> None:
    """Keep the tokenizer with the output, so that reports and exports need nothing else."""
    if storage.is_folder(output.at("tokenizer")):
        return
    with tempfile.TemporaryDirectory() as folder:
        encoder.save_tokenizer(Path(folder))
        for file in sorted(Path(folder).iterdir()):
            storage.write_bytes(output.at("tokenizer", file.name), file.read_bytes())


def adopt_scores(spec: JobSpec, output: Output) -> Scored:
    """Give the score shards of a finished output a place in this one: hard links, or copies across filesystems.

    Raises SpecError where the spec asks for other scores than the earlier output has.
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
    scored = Scored.from_manifest(manifest)
    names = [file["path"] for file in scored.files]
    names += [f"tokenizer/{uri.rsplit('/', 1)[-1]}" for uri in storage.list_files(origin.at("tokenizer"))]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda name: storage.link_or_copy(origin.at(name), output.at(name)), names))
    return scored
