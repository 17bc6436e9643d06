"""The dataset class for verl in examples/, which needs no verl itself."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from qtune_service.export.run import export
from qtune_service.export.writers import Options
from tests.jobs import REPO, rows


@pytest.fixture(scope="module")
def example() -> ModuleType:
    """Load the file as verl loads it."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("verl_dataset", REPO / "examples" / "trainers" / "verl_dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_rows_are_long_tensors_as_exported(example: ModuleType, out: Path, tmp_path: Path) -> None:
    """Across files; the first ones only where verl asks for a number of samples."""
    export(str(out), "verl", str(tmp_path), Options(rows_per_file=7))
    files = sorted(map(str, tmp_path.glob("*.parquet")))
    data = example.PrunedDataset(files, tokenizer=None, config={"pad_mode": "no_padding"}, max_samples=-1)
    expected = [{name: row[name] for name in example.COLUMNS} for row in rows(tmp_path)]
    assert [{name: values.tolist() for name, values in data[i].items()} for i in range(len(data))] == expected
    assert {str(values.dtype) for values in data[0].values()} == {"torch.int64"}
    assert len(example.PrunedDataset(files[0], max_samples=3)) == 3


def test_what_it_cannot_do_is_said(example: ModuleType, out: Path, tmp_path: Path) -> None:
    """Padding, and samples over the length limit."""
    export(str(out), "verl", str(tmp_path), Options())
    files = sorted(map(str, tmp_path.glob("*.parquet")))
    with pytest.raises(ValueError, match="no_padding"):
        example.PrunedDataset(files, config={"pad_mode": "right"})
    with pytest.raises(ValueError, match=r"more than data\.max_length=10"):
        example.PrunedDataset(files, config={"max_length": 10})[0]
