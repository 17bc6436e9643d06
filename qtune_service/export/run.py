"""`qtune export`: check the options, clear the folder, write the files, and return the lines that load them.

A folder that is not empty is not changed. With `overwrite`, files of an earlier export are removed from it first. If
the folder contains any other file, the export is refused, so that a mistyped folder loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qtune_service.errors import DataError, OutputConflictError, SpecError
from qtune_service.export.analysis import check_size, write_analysis
from qtune_service.export.hub import USER_NAME
from qtune_service.export.trainers import TRAINERS, Trainer
from qtune_service.export.writers import Export, Options
from qtune_service.output.reader import FinishedOutput
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile

ANALYSIS = Trainer(
    "analysis",
    write_analysis,
    'jq \'.[] | select(.metadata.quadrant == "Q2") '
    "| {{id, ppl: .metadata.ppl, removed: .metadata.tokens_removed}}' \\\n    {folder}/stage2_final.json",
    check=check_size,
)
FORMATS = {ANALYSIS.name: ANALYSIS} | TRAINERS
OURS = re.compile(
    r"(data/)?train-\d{5}(-of-\d{5})?(\.idx)?\.(parquet|jsonl)|data-\d{5}\.arrow|README\.md"
    r"|(state|dataset_info|_packing_metadata|summary_statistics|stage[12]_\w+)\.json|token_pruning_visualization\.html"
)


@dataclass(frozen=True, slots=True)
class Exported:
    """The result of an export."""

    folder: str
    num_rows: int
    files: tuple[WrittenFile, ...]
    usage: str
    """The lines that load it."""
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Return the size of all files."""
        return sum(file.size_bytes for file in self.files)


def export(output: str, form: str, folder: str, options: Options, *, overwrite: bool = False) -> Exported:
    """Write a finished output in another form.

    All checks come before the first change of the folder. Raise QTuneError.
    """
    check_options(form, options)
    chosen, finished = FORMATS[form], FinishedOutput(output)
    strategy = finished.prune.strategy
    if not finished.pruned_shards and chosen is not ANALYSIS:
        raise DataError(f"{output} kept no sample", "Prune it with a larger --sample-keep-ratio.")
    job = Export(finished, folder, options)
    if chosen.check is not None:
        chosen.check(job)
    _make_room(folder, overwrite=overwrite)
    files = _all_or_none(chosen.write(job))
    if strategy == "infobatch" and not chosen.has_weights:
        job.notes.append(
            f"{form} cannot hold the loss weights of InfoBatch (qtune.loss_weight in pruned/). Without them the "
            "gradient is biased"
        )
    names = {"folder": folder.rstrip("/"), "repository": options.repository or USER_NAME}
    usage = chosen.usage.format(**names, pack_length=options.pack_length)
    return Exported(folder, job.num_rows, files, usage, tuple(job.notes))


def check_options(form: str, options: Options) -> None:
    """Raise SpecError for an option that a format does not use."""
    chosen = FORMATS[form]
    unused = (
        ("--pack-length", "megatron-bridge", options.pack_length is not None and not chosen.packs),
        ("--license", "hub", options.license is not None and chosen.name != "hub"),
        ("--push", "hub", options.repository is not None and chosen.name != "hub"),
        ("--rows-per-file", "all but analysis", options.rows_per_file is not None and chosen is ANALYSIS),
    )
    for flag, formats, is_unused in unused:
        if is_unused:
            raise SpecError(f"{flag} applies to --to {formats} only", f"Remove it for --to {chosen.name}.")


def _make_room(folder: str, *, overwrite: bool) -> None:
    """Remove an earlier export. Raise OutputConflictError for other files. Hidden files are ignored and stay."""
    top = _visible(folder, recursive=False)
    found = top if any(map(_is_foreign, top)) else _visible(folder, recursive=True)
    foreign = next(filter(_is_foreign, found), None)
    if found and not overwrite:
        raise OutputConflictError(
            f"{folder} is not empty: it contains {next(iter(found))}",
            "Choose another folder, or pass --overwrite to replace an earlier export there.",
        )
    if foreign is not None:
        raise OutputConflictError(
            f"{folder} contains {foreign}, which is not a file of an export",
            "Choose another folder. Nothing was removed.",
        )
    for uri in found.values():
        file_io.remove_file(uri)


def _all_or_none(writing: Iterator[WrittenFile]) -> tuple[WrittenFile, ...]:
    """Write all files. If one fails or the user stops, remove all: half a dataset looks like a whole one."""
    files: list[WrittenFile] = []
    try:
        files.extend(writing)
    except BaseException:
        for file in files:
            file_io.remove_file(file.uri)
        raise
    return tuple(files)


def _visible(folder: str, *, recursive: bool) -> dict[str, str]:
    """Return the files of a folder that are not hidden: path below it -> URI."""
    listed = {file_io.relative(uri, folder): uri for uri in file_io.list_files(folder, recursive=recursive)}
    return {path: uri for path, uri in listed.items() if not any(part.startswith(".") for part in path.split("/"))}


def _is_foreign(path: str) -> bool:
    return OURS.fullmatch(path) is None
