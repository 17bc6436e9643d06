"""The trainers that exports support: one entry and one column function each.

To add a trainer: write how its rows are made of pruned/, which writer puts them into files, and the lines that load
them. The sources that were read for each are in docs/guides/exports.md.

Columns are made of those of pruned/, row for row on flat arrays. Trainers differ in three things: whether they read the
mask or the labels; whether a label is at its token (the model shifts) or at the token before it (already shifted); and
whether the mask covers the sample or its response.

ms-swift trains by turn: a message's `loss` decides whether its tokens count, so masks of single tokens are not
exported. An assistant turn that the job trained on gets `loss: true` while at least one of its tokens is left, and
false if stage 2 removed all of them. A turn that the record itself excludes keeps false. The runs of the loss mask
before stage 2 identify the turns: if a sample has as many runs as trained turns, the k-th run is the k-th turn.
Otherwise (a template that puts nothing between two assistant turns) its turns keep true, and the sample is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from qtune_service.errors import DataError, SpecError
from qtune_service.export import writers
from qtune_service.export.hub import check_repository, write_repository
from qtune_service.export.packing import Packer, check_lengths, packed_tables, write_packed
from qtune_service.export.writers import (
    Export,
    Writer,
    pruned_tables,
    write_jsonl,
    write_lines,
    write_parquet,
    write_saved_dataset,
)
from qtune_service.ingest.jsonl import decode_value
from qtune_service.ingest.messages import parse_turns, single_turns
from qtune_service.ingest.records import NO_NAMES, ColumnNames
from qtune_service.ingest.rows import records_of
from qtune_service.ingest.schema import is_json
from qtune_service.output.columns import Ragged, list_column, ragged
from qtune_service.output.reader import FinishedOutput
from qtune_service.selection.token_masks import trainable
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile


def torchtune(rows: pa.Table) -> pa.Table:
    """Return tokens, and mask: True where the loss ignores a token."""
    mask = ragged(rows["loss_mask"])
    return pa.table({"tokens": rows["input_ids"], "mask": list_column(mask.flat == 0, mask.offsets, pa.bool_())})


def verl(rows: pa.Table) -> pa.Table:
    """Return the columns of verl's datasets: input_ids, attention_mask, position_ids, loss_mask."""
    offsets = ragged(rows["input_ids"]).offsets
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1], np.diff(offsets))
    return pa.table(
        {
            "input_ids": rows["input_ids"],
            "attention_mask": rows["attention_mask"],
            "position_ids": list_column(positions, offsets, pa.int32()),
            "loss_mask": rows["loss_mask"],
        }
    )


def nemo_automodel(rows: pa.Table) -> pa.Table:
    """Return input_ids without the last token and labels without the first: position t predicts labels[t]."""
    ids, labels = ragged(rows["input_ids"]), ragged(rows["labels"])
    last = np.zeros(len(ids.flat), np.bool_)
    last[ids.offsets[1:] - 1] = True
    first = np.zeros(len(ids.flat), np.bool_)
    first[ids.offsets[:-1]] = True
    offsets = ids.offsets - np.arange(len(ids.offsets))
    return pa.table(
        {
            "input_ids": list_column(ids.flat[~last], offsets, pa.int32()),
            "labels": list_column(labels.flat[~first], offsets, pa.int32()),
            "attention_mask": list_column(np.ones(offsets[-1], np.int8), offsets, pa.int8()),
        }
    )


def slime(rows: pa.Table) -> pa.Table:
    """Return tokens, response_length, and loss_mask over the response, which begins at the first trained token.

    slime's own SFT rollout begins the response there too. A response may contain turns of others, with mask 0.
    """
    mask = ragged(rows["loss_mask"])
    firsts = first_trained(mask)
    lengths = np.diff(mask.offsets) - firsts
    in_response = np.arange(len(mask.flat)) >= np.repeat(mask.offsets[:-1] + firsts, np.diff(mask.offsets))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return pa.table(
        {
            "tokens": rows["input_ids"],
            "response_length": pa.array(lengths, pa.int32()),
            "loss_mask": list_column(mask.flat[in_response], offsets, pa.int8()),
        }
    )


def first_trained(mask: Ragged) -> NDArray[np.int64]:
    """Return the position of each row's first 1 (S,), and the row's length for rows of zeros."""
    ones = np.flatnonzero(mask.flat)
    at = np.append(ones, len(mask.flat))[np.searchsorted(ones, mask.offsets[:-1])]
    firsts: NDArray[np.int64] = np.minimum(at, mask.offsets[1:]) - mask.offsets[:-1]
    return firsts


class TurnFlags:
    """Sets the `loss` flags of turns, and counts the samples with turns that cannot be identified."""

    def __init__(self, names: ColumnNames = NO_NAMES) -> None:
        self.unclear = 0
        self._names = names

    def flagged(self, turns_or_text: list[Any] | str, survivors: list[bool]) -> list[dict[str, Any]]:
        """Return messages with `loss` on assistant turns. survivors: for each run, whether any token is left.

        turns_or_text: turns, or JSON text of them.
        """
        messages = list(single_turns(_objects(turns_or_text)))
        turns = parse_turns(messages, "messages", self._names)
        is_clear = len(survivors) == sum(turns.trained)
        self.unclear += not is_clear and not all(survivors)
        flags = iter(survivors if is_clear else [True] * sum(turns.trained))
        return [
            message | {"loss": is_trained and next(flags)} if turn["role"] == "assistant" else message
            for message, turn, is_trained in zip(messages, turns.messages, turns.trained, strict=True)
        ]


def _objects(turns: list[Any] | str) -> list[dict[str, Any]]:
    """Return turns as objects. They, or each of them, may be JSON text."""
    listed = decode_value(turns) if isinstance(turns, str) else turns
    return [decode_value(turn) if isinstance(turn, str) else turn for turn in listed]


def check_messages(finished: FinishedOutput) -> None:
    """Raise DataError if kept records have no messages to flag."""
    own = list(finished.own_columns.values())
    advice = "Convert the records to chat messages before scoring, or export for a trainer that reads tokens."
    if "messages" not in own:
        raise DataError(
            f"ms-swift trains by turn and requires records with `messages`, but these have {', '.join(own) or 'none'}",
            advice,
        )
    missing = sum(map(_num_without_messages, pruned_tables(finished, ["messages"])))
    if missing:
        raise DataError(f"ms-swift trains by turn, and {missing:,} kept records have no `messages`", advice)


def _num_without_messages(table: pa.Table) -> int:
    if is_json(table.schema.field("messages")):
        return sum(record.get("messages") is None for record in records_of(table))
    return table["messages"].null_count


def turn_tables(finished: FinishedOutput, turn_flags: TurnFlags) -> Iterator[pa.Table]:
    """Yield messages, and tools if the records have them, as a JSON text a row, since turns differ in type."""
    own = {mine: name for name, mine in finished.own_columns.items() if mine in ("messages", "tools")}
    for shard in finished.pruned_shards:
        _, kept = finished.labels(shard)
        scores = finished.scores(shard, [*own.values(), "loss_mask"]).filter(pa.array(kept))
        final = finished.pruned(shard, ["loss_mask"])
        survivors = surviving_runs(ragged(scores["loss_mask"]), ragged(final["loss_mask"]))
        plain = scores.select(list(own.values()))
        rows = []
        for row, alive in zip(records_of(plain), survivors.rows(), strict=True):
            body = {"messages": turn_flags.flagged(row[own["messages"]], alive.tolist())}
            if "tools" in own and row.get(own["tools"]) is not None:
                body["tools"] = row[own["tools"]]
            rows.append(writers.encode(body))
        yield pa.table({"json": pa.array(rows, pa.binary())})


def surviving_runs(before: Ragged, after: Ragged) -> Ragged:
    """Return for each run of 1 in `before` whether `after` has a 1 in it: (R,) for all rows, offsets (S + 1,)."""
    mask = trainable(before.flat.astype(np.int8), before.offsets)
    previous: NDArray[np.int8] = np.concatenate([[0], mask[:-1]])
    starts = np.flatnonzero((mask == 1) & (previous == 0))  # position 0 of a row is 0, so no run crosses rows
    left = np.add.reduceat(after.flat.astype(np.int64) * mask, starts) if len(starts) else np.empty(0, np.int64)
    return Ragged(left > 0, np.searchsorted(starts, before.offsets))


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
    flags = TurnFlags(ColumnNames.of(export.finished.spec.input))
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
            _rows(write_parquet, "input_ids", "loss_mask", make=torchtune),
            'files = {{"data_files": "{folder}/*.parquet", "split": "train"}}\n'
            'data = SFTDataset(source="parquet", message_transform=dict, model_transform=dict, **files)',
        ),
        Trainer(
            "verl",
            _rows(write_parquet, "input_ids", "attention_mask", "loss_mask", make=verl),
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
            _rows(write_parquet, "input_ids", "labels", make=nemo_automodel),
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
            _rows(write_parquet, "input_ids", "loss_mask", make=slime),
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
            "hf upload {repository} {folder} . --repo-type dataset --private\n"
            'data = load_dataset("{repository}", split="train")',
            check=check_repository,
            has_weights=True,
        ),
    )
}
