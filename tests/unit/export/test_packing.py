"""Packed rows: every sample once and whole, and the trainer's own reading of them gives the labels of pruned/."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qtune_service.errors import DataError
from qtune_service.export.packing import Packer
from qtune_service.export.run import export
from qtune_service.export.writers import Options
from tests.jobs import rows


def as_read(row: dict[str, Any]) -> list[tuple[list[int], list[int]]]:
    """(tokens, labels) of each sample in a packed row, as Megatron-Bridge's collate_fn reads it.

    Of each sample the inputs are all but the last token, the labels all but the first, the mask all but the last.
    """
    bounds = [*row["seq_start_id"], len(row["input_ids"])]
    samples = []
    for low, high in pairwise(bounds):
        ids, mask = row["input_ids"][low:high], row["loss_mask"][low:high]
        labels = [label if trained else -100 for label, trained in zip(ids[1:], mask[:-1], strict=True)]
        samples.append((ids, labels))
    return samples


def test_packed_samples_train_on_the_same_labels(out: Path, tmp_path: Path) -> None:
    """What the trainer makes of a row are the samples of pruned/, each once, with labels shifted by one."""
    done = export(str(out), "megatron-bridge", str(tmp_path), Options(pack_length=300))
    packed = rows(tmp_path)
    found = sorted(sample for row in packed for sample in as_read(row))
    assert found == sorted((row["input_ids"], row["labels"][1:]) for row in rows(out / "pruned"))
    used = [sum(len(ids) - 1 for ids, _ in as_read(row)) for row in packed]
    assert max(used) <= 300
    assert done.num_rows == len(packed)


def test_what_megatron_bridge_keeps_beside_is_true(out: Path, tmp_path: Path) -> None:
    """_packing_metadata.json, by the names of `packed_metadata_path`."""
    done = export(str(out), "megatron-bridge", str(tmp_path), Options(pack_length=256))
    (about,) = json.loads((tmp_path / "_packing_metadata.json").read_text())
    packed = [as_read(row) for row in rows(tmp_path)]
    used = [sum(len(ids) - 1 for ids, _ in row) for row in packed]
    assert about == {
        "dataset_max_seqlen": max(len(ids) - 1 for row in packed for ids, _ in row),
        "max_samples_per_bin": max(map(len, packed)),
        "packing_factor": round(sum(map(len, packed)) / len(packed), 2),
        "packing_efficiency": round(100 * sum(used) / (256 * len(used)), 2),
        "pack_size": 256,
        "min_packed_seqlen": min(used),
    }
    assert f"{about['packing_efficiency']}% filled" in done.notes[0]


def test_files_have_the_names_types_and_row_groups_that_it_wants(out: Path, tmp_path: Path) -> None:
    """Older versions know packed Parquet by `.idx.parquet`; a row is read with its whole row group."""
    export(str(out), "megatron-bridge", str(tmp_path), Options(pack_length=256, rows_per_file=10))
    first, *_ = files = sorted(tmp_path.glob("*.parquet"))
    assert all(file.name.endswith(".idx.parquet") for file in files)
    assert [str(field.type.value_type) for field in pq.read_schema(first)] == ["int32", "int8", "int32"]
    assert pq.ParquetFile(first).num_row_groups == 1


def test_samples_longer_than_a_row_are_told_before_anything_is_written(out: Path, tmp_path: Path) -> None:
    """How many, and the length that would hold them all, which then does."""
    sizes = [len(row["input_ids"]) - 1 for row in rows(out / "pruned")]
    limit = sorted(sizes)[-4]
    too_long = sum(size > limit for size in sizes)
    with pytest.raises(DataError, match=f"^{too_long} of {len(sizes)} samples do not fit") as refusal:
        export(str(out), "megatron-bridge", str(tmp_path), Options(pack_length=limit))
    assert f"--pack-length {max(sizes)}" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []
    export(str(out), "megatron-bridge", str(tmp_path), Options(pack_length=max(sizes)))


@given(st.lists(st.integers(2, 40), min_size=1, max_size=60), st.integers(39, 90), st.integers(1, 5))
def test_first_fit_places_every_sample_once(sizes: list[int], length: int, window: int) -> None:
    """Whatever the lengths and the window: no row is over-full, none empty, no sample lost."""
    packer = Packer(length, window)
    samples = [(np.full(size, number), np.zeros(size, np.int8)) for number, size in enumerate(sizes)]
    closed = [row for sample in samples if (row := packer.place(sample)) is not None]
    closed += packer.rest()
    numbers = [int(ids[0]) for row in closed for ids, _ in row]
    assert sorted(numbers) == list(range(len(sizes)))
    used = [sum(len(ids) - 1 for ids, _ in row) for row in closed]
    assert max(used) <= length
    assert (packer.samples, packer.rows, packer.filled) == (len(sizes), len(closed), sum(used))


def test_a_window_packs_tightly() -> None:
    """Long-tailed lengths fill rows of 4,096 by more than 95%."""
    rng = np.random.default_rng(0)
    packer = Packer(4096)
    for size in np.clip(rng.lognormal(6, 0.8, 3000), 2, 4097).astype(int):
        packer.place((np.zeros(size), np.zeros(size)))
    list(packer.rest())
    assert packer.metadata()[0]["packing_efficiency"] > 95
