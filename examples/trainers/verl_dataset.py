"""Load `qtune export --to verl` in verl's SFT: a dataset class that passes tokens and masks unchanged.

    torchrun ... -m verl.trainer.sft_trainer data.train_files=[DIR/train-00000.parquet,...] data.pad_mode=no_padding \
        data.custom_cls.path=examples/trainers/verl_dataset.py data.custom_cls.name=PrunedDataset
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

COLUMNS = ["input_ids", "position_ids", "loss_mask"]  # rows are not padded, so the attention mask is all ones


class PrunedDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Unpadded rows of exported files. verl calls the constructor with these arguments."""

    def __init__(
        self,
        parquet_files: str | Sequence[str],
        tokenizer: Any = None,  # noqa: ARG002 - rows are already tokenized
        config: Mapping[str, Any] | None = None,
        processor: Any = None,  # noqa: ARG002
        max_samples: int = -1,
    ) -> None:
        settings = config or {}
        if settings.get("pad_mode", "no_padding") != "no_padding":
            raise ValueError("set data.pad_mode=no_padding: these samples are not padded")
        files = [parquet_files] if isinstance(parquet_files, str) else list(parquet_files)
        table = pa.concat_tables([pq.read_table(file, columns=COLUMNS) for file in files])
        self._table = table if max_samples < 0 else table.slice(0, max_samples)
        self._max_length = settings.get("max_length")

    def __len__(self) -> int:
        return self._table.num_rows

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = {name: self._table[name][index].values.to_numpy().astype(np.int64) for name in COLUMNS}
        length = len(row["input_ids"])
        if self._max_length is not None and length > self._max_length:
            raise ValueError(f"sample {index} has {length} tokens, more than data.max_length={self._max_length}")
        return {name: torch.from_numpy(values) for name, values in row.items()}
