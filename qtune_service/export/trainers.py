"""The trainers that exports support, one entry each. Only the columns of a trainer are elsewhere.

To add a trainer: say how its rows are made of pruned/ (trainer_columns.py), which writer puts them into files, and the
lines that load them. The sources that were read for each are in docs/guides/exports.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa

from qtune_service.errors import SpecError
from qtune_service.export import trainer_columns
from qtune_service.export.hub import check_repository, write_repository
from qtune_service.export.packing import Packer, check_lengths, packed_tables, write_packed
from qtune_service.export.trainer_columns import TurnFlags, check_messages, turn_tables
from qtune_service.export.writers import (
    Export,
    Writer,
    pruned_tables,
    write_jsonl,
    write_lines,
    write_parquet,
    write_saved_dataset,
)
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile

Columns = Callable[[pa.Table], pa.Table]
LOAD_PARQUET = 'data = load_dataset("parquet", data_files="{folder}/*.parquet", split="train")'


@dataclass(frozen=True, slots=True)
class Trainer:
    """A reader of exports, and the way to write for it."""

    name: str
    write: Callable[[Export], Iterator[WrittenFile]]
    usage: str
    """The lines that load the export from {folder}."""
    check: Callable[[Export], None] | None = None
    """Raises QTuneError if the trainer cannot read the output."""
    has_weights: bool = False
    """Whether the export includes the sample weights of weighted strategies."""
    packs: bool = False


def _rows(writer: Writer, *names: str, make: Columns | None = None) -> Callable[[Export], Iterator[WrittenFile]]:
    """Return a writer of rows: columns of pruned/ by name (none: all), or columns that `make` returns for them."""

    def write(export: Export) -> Iterator[WrittenFile]:
        tables = pruned_tables(export.finished, list(names) or None)
        return export.write(writer, map(make, tables) if make else tables)

    return write


def _pack_length(export: Export) -> int:
    if export.options.pack_length is None:
        raise SpecError("megatron-bridge reads packed rows", "Add --pack-length, the sequence length of the training.")
    return export.options.pack_length


def _packed(export: Export) -> Iterator[WrittenFile]:
    packer = Packer(_pack_length(export))
    yield from export.write(write_packed, packed_tables(export.finished, packer))
    about = packer.metadata()
    yield file_io.write_json(file_io.join(export.folder, "_packing_metadata.json"), about)
    filled = f"{about[0]['packing_efficiency']}% filled"
    export.notes.append(f"{packer.samples:,} samples in {packer.rows:,} rows of {packer.length:,} tokens, {filled}")


def _by_turn(export: Export) -> Iterator[WrittenFile]:
    flags = TurnFlags()
    yield from export.write(write_lines, turn_tables(export.finished, flags))
    export.notes.append("ms-swift trains whole turns: this export has no masks of single tokens")
    if flags.unclear:
        export.notes.append(
            f"in {flags.unclear:,} samples the turn that lost all its tokens is not known, so they train every turn"
        )


TRAINERS = {
    trainer.name: trainer
    for trainer in (
        Trainer(
            "trl",
            _rows(write_parquet, "input_ids", "labels", "assistant_masks"),
            f"{LOAD_PARQUET}\nSFTTrainer(model, args=SFTConfig(max_length=None), train_dataset=data).train()",
        ),
        Trainer(
            "axolotl",
            _rows(write_parquet, "input_ids", "attention_mask", "labels"),
            "datasets:\n  - {{path: {folder}, split: train, type: }}",
        ),
        Trainer(
            "llama-factory",
            _rows(write_saved_dataset, "input_ids", "attention_mask", "labels"),
            "tokenized_path: {folder}\ndataset: unused  # required, but tokenized_path takes precedence",
        ),
        Trainer(
            "torchtune",
            _rows(write_parquet, "input_ids", "loss_mask", make=trainer_columns.torchtune),
            'files = {{"data_files": "{folder}/*.parquet", "split": "train"}}\n'
            'data = SFTDataset(source="parquet", message_transform=dict, model_transform=dict, **files)',
        ),
        Trainer(
            "verl",
            _rows(write_parquet, "input_ids", "attention_mask", "loss_mask", make=trainer_columns.verl),
            "data.train_files=[{folder}/train-00000.parquet,...]\n"
            "data.pad_mode=no_padding data.custom_cls.path=examples/trainers/verl_dataset.py "
            "data.custom_cls.name=PrunedDataset",
        ),
        Trainer(
            "skyrl",
            _rows(write_parquet, "input_ids", "loss_mask"),
            "python -m skyrl.train.main_sft model.path=MODEL \\\n    'pretokenized_dataset_paths=[{folder}]'",
        ),
        Trainer(
            "megatron-bridge",
            _packed,
            "PackedSequenceSpecs(packed_sequence_size={pack_length},\n"
            '    packed_train_data_path="{folder}/*.idx.parquet")',
            check=lambda export: check_lengths(export.finished, _pack_length(export)),
            packs=True,
        ),
        Trainer(
            "nemo-automodel",
            _rows(write_parquet, "input_ids", "labels", make=trainer_columns.nemo_automodel),
            "dataset:\n"
            '  {{_target_: datasets.load_dataset, path: parquet, data_files: "{folder}/*.parquet", split: train}}',
        ),
        Trainer(
            "ms-swift",
            _by_turn,
            "swift sft --model MODEL \\\n    --dataset {folder}/*.jsonl",
            check=lambda export: check_messages(export.finished),
        ),
        Trainer(
            "slime",
            _rows(write_parquet, "input_ids", "loss_mask", make=trainer_columns.slime),
            "# in a --rollout-function-path or --data-source-path of yours, see docs/guides/exports.md:\n"
            'Sample(tokens=r["tokens"], response_length=r["response_length"], loss_mask=r["loss_mask"], reward=0)',
        ),
        Trainer("parquet", _rows(write_parquet), LOAD_PARQUET, has_weights=True),
        Trainer(
            "jsonl",
            _rows(write_jsonl),
            'data = load_dataset("json", data_files="{folder}/*.jsonl", split="train")',
            has_weights=True,
        ),
        Trainer(
            "hub",
            write_repository,
            'hf upload USER/NAME {folder} . --repo-type dataset\ndata = load_dataset("USER/NAME", split="train")',
            check=check_repository,
            has_weights=True,
        ),
    )
}
