"""`qtune export`: check what is asked for, make room, write, and say how the result is loaded.

A folder that is not empty is left alone. With `overwrite`, files that an export writes are removed from it first; it
is refused where anything else lies there, so a mistyped folder loses nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from qtune_service.errors import DataError, OutputConflictError, SpecError
from qtune_service.export.analysis import check_size, write_analysis
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
    """What was written."""

    folder: str
    num_rows: int
    files: tuple[WrittenFile, ...]
    usage: str
    """The lines that load it."""
    notes: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)


def export(output: str, form: str, folder: str, options: Options, *, overwrite: bool = False) -> Exported:
    """Write a finished output in another form. What cannot be is said before the folder is touched: QTuneError."""
    chosen, finished = FORMATS[form], FinishedOutput(output)
    _check_options(chosen, options)
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
            f"{form} has no place for the loss weights of InfoBatch (qtune.loss_weight in pruned/); without them the "
            "gradient is biased"
        )
    usage = chosen.usage.format(folder=folder.rstrip("/"), pack_length=options.pack_length)
    return Exported(folder, job.num_rows, files, usage, tuple(job.notes))


def _check_options(chosen: Trainer, options: Options) -> None:
    needless = (
        ("--pack-length", "megatron-bridge", options.pack_length is not None and not chosen.packs),
        ("--license", "hub", options.license is not None and chosen.name != "hub"),
        ("--rows-per-file", "all but analysis", options.rows_per_file is not None and chosen is ANALYSIS),
    )
    for flag, place, is_needless in needless:
        if is_needless:
            raise SpecError(f"{flag} goes with --to {place}", f"Leave it out for --to {chosen.name}.")


def _make_room(folder: str, *, overwrite: bool) -> None:
    """Raises OutputConflictError where there are files that may not go. Hidden ones neither matter nor go."""
    top = _visible(folder, recursive=False)
    found = top if any(map(_is_foreign, top)) else _visible(folder, recursive=True)
    foreign = next(filter(_is_foreign, found), None)
    if found and not overwrite:
        raise OutputConflictError(
            f"{folder} is not empty: it holds {next(iter(found))}",
            "Choose another folder, or --overwrite to replace an earlier export there.",
        )
    if foreign is not None:
        raise OutputConflictError(
            f"{folder} holds {foreign}, which no export writes", "Choose another folder; nothing was removed."
        )
    for uri in found.values():
        file_io.remove_file(uri)


def _all_or_none(writing: Iterator[WrittenFile]) -> tuple[WrittenFile, ...]:
    """All files; where one cannot be written, or the user stops, none stays: half a dataset looks like a whole one."""
    files: list[WrittenFile] = []
    try:
        files.extend(writing)
    except BaseException:
        for file in files:
            file_io.remove_file(file.uri)
        raise
    return tuple(files)


def _visible(folder: str, *, recursive: bool) -> dict[str, str]:
    """Files of a folder: path below it -> URI."""
    listed = {file_io.relative(uri, folder): uri for uri in file_io.list_files(folder, recursive=recursive)}
    return {path: uri for path, uri in listed.items() if not any(part.startswith(".") for part in path.split("/"))}


def _is_foreign(path: str) -> bool:
    return OURS.fullmatch(path) is None
