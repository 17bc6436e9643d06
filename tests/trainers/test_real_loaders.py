"""Exports in the hands of the trainers' own code, for those that can be imported here; the others are skipped.

None of them is a dependency of the tests: they are installed for such a run alone, `pip install --no-deps axolotl` and
so on. What they read is compared with pruned/, and where they shift or mask, with its labels.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from qtune_service.export.run import export
from qtune_service.export.writers import Options
from tests.jobs import REPO, rows
from tests.unit.export.test_packing import as_read

Row = dict[str, Any]


def real(module: str) -> Any:
    """Import a trainer's module. Skip where it is missing or cannot be imported on this machine."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # noqa: BLE001 - they fail in many ways: no GPU, another Python, missing libraries
        pytest.skip(f"{module} cannot be imported here: {type(error).__name__}: {str(error).splitlines()[:1]}")


@pytest.fixture
def pruned(out: Path) -> list[Row]:
    """Rows of the product."""
    return rows(out / "pruned")


def test_axolotl_takes_it_as_tokenized_already(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """With an empty `type:`, its loader gives our columns and its wrapper leaves them alone."""
    loading, wrapping = real("axolotl.utils.data.shared"), real("axolotl.utils.data.wrappers")
    config = real("axolotl.utils.dict").DictDefault
    export(str(out), "axolotl", str(tmp_path), Options())
    entry = config({"path": str(tmp_path), "split": "train", "type": None})
    loaded = loading.load_dataset_with_config(entry, False)
    data, prompter = wrapping.get_dataset_wrapper(entry, None, config({}), None, loaded)
    assert type(prompter).__name__ == "UnsupportedPrompter"
    assert data.to_list() == [{name: row[name] for name in ("input_ids", "attention_mask", "labels")} for row in pruned]


def test_llama_factory_loads_it_by_tokenized_path(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """Its `get_dataset` goes by `tokenized_path` and asks for nothing else."""
    loader = real("llamafactory.data.loader")
    export(str(out), "llama-factory", str(tmp_path), Options())
    arguments = SimpleNamespace(tokenized_path=str(tmp_path), streaming=False)
    found = loader.get_dataset(None, None, arguments, None, "sft", None)["train_dataset"]
    assert found.to_list() == [{k: row[k] for k in ("input_ids", "attention_mask", "labels")} for row in pruned]


def test_torchtune_makes_our_labels_of_its_mask(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """SFTDataset with the printed arguments, and its collate function."""
    datasets, data = real("torchtune.datasets"), real("torchtune.data")
    export(str(out), "torchtune", str(tmp_path), Options())
    files = {"data_files": f"{tmp_path}/*.parquet", "split": "train"}
    found = datasets.SFTDataset(source="parquet", message_transform=dict, model_transform=dict, **files)
    assert [list(map(int, found[i]["labels"])) for i in range(len(found))] == [row["labels"] for row in pruned]
    batch = data.padded_collate_sft([found[0], found[1]])
    for labels, row in zip(batch["labels"].tolist(), pruned, strict=False):
        assert labels == row["labels"] + [-100] * (len(labels) - len(row["labels"]))


def test_verl_sums_the_loss_of_the_kept_tokens(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """Its loader finds the class in examples/, its collator batches it, and its loss shifts the mask as it is meant."""
    import torch

    imports, utils = real("verl.utils.import_utils"), real("verl.utils.dataset.dataset_utils")
    export(str(out), "verl", str(tmp_path), Options())
    dataset = imports.load_extern_object(str(REPO / "examples" / "trainers" / "verl_dataset.py"), "PrunedDataset")
    files = sorted(str(file) for file in tmp_path.glob("*.parquet"))
    data = dataset(parquet_files=files, tokenizer=None, config={"pad_mode": "no_padding"}, processor=None)
    assert len(data) == len(pruned)
    batch = utils.SFTTensorCollator(utils.DatasetPadMode.NO_PADDING)([data[i] for i in range(len(data))])
    assert batch["input_ids"].values().tolist() == [i for row in pruned for i in row["input_ids"]]
    losses = real("verl.workers.utils.losses")
    tensordict = real("tensordict").TensorDict
    tokens = batch["input_ids"].values()
    of_next = torch.roll(tokens, -1).double()  # as if the log probability of each token were its id
    log_probs = torch.nested.nested_tensor_from_jagged(of_next, batch["input_ids"].offsets())
    about = {"loss_mask": batch["loss_mask"], "dp_size": 1, "batch_num_tokens": 1}
    loss, _ = losses.sft_loss(None, {"log_probs": log_probs}, tensordict(about, batch_size=[]))
    assert -loss.item() == sum(label for row in pruned for label in row["labels"] if label != -100)


def test_skyrl_finds_the_response_in_the_mask(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """`load_from_pretokenized` keeps every row, and infers where the response begins."""
    loader = real("skyrl.train.dataset.pretokenized")
    export(str(out), "skyrl", str(tmp_path), Options())
    found = loader.load_from_pretokenized(str(tmp_path))
    assert [row["input_ids"] for row in found] == [row["input_ids"] for row in pruned]
    for theirs, row in zip(found, pruned, strict=True):
        first = row["loss_mask"].index(1)
        assert (theirs["num_actions"], theirs["loss_mask"]) == (len(row["loss_mask"]) - first, row["loss_mask"][first:])


def test_nemo_automodel_pads_it_as_its_own(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """`_target_: datasets.load_dataset` builds, and the default collater keeps labels beside the right tokens."""
    loader, utils = real("nemo_automodel.components.datasets.loader"), real("nemo_automodel.components.datasets.utils")
    export(str(out), "nemo-automodel", str(tmp_path), Options())
    where = {"path": "parquet", "data_files": f"{tmp_path}/*.parquet", "split": "train"}
    data = loader.make_dataset_config("datasets.load_dataset", where).build()
    batch = utils.default_collater([data[i] for i in range(8)])
    for ids, labels, mask, row in zip(
        *(batch[name].tolist() for name in ("input_ids", "labels", "attention_mask")), pruned[:8], strict=True
    ):
        size = len(row["input_ids"]) - 1
        assert (ids[:size], labels[:size]) == (row["input_ids"][:-1], row["labels"][1:])
        assert mask == [1] * size + [0] * (len(mask) - size)
        assert set(labels[size:]) <= {-100}


def test_ms_swift_leaves_out_the_turns_that_it_is_told_to(out: Path, tmp_path: Path) -> None:
    """Its preprocessor keeps `loss` on each message, and its loss scale is 0 just where that is false."""
    from datasets import load_dataset

    core, scale = real("swift.dataset.preprocessor.core"), real("swift.loss_scale.base")
    kinds = real("swift.template.utils").ContextType
    export(str(out), "ms-swift", str(tmp_path), Options())
    raw = load_dataset("json", data_files=f"{tmp_path}/*.jsonl", split="train", cache_dir=str(tmp_path / "cache"))
    data = core.AutoPreprocessor()(raw, load_from_cache_file=False)
    assert len(data) == len(raw)
    for row in data:
        answers = [m for m in row["messages"] if m["role"] == "assistant"]
        contexts = [m["content"] for m in answers]
        _, scales = scale.LossScale()(contexts, [kinds.RESPONSE] * len(contexts), row["messages"])
        assert scales == [float(m["loss"]) for m in answers]


def test_megatron_bridge_reads_packed_rows(out: Path, pruned: list[Row], tmp_path: Path) -> None:
    """Its dataset reads the files, and its collate function gives our labels under our masks."""
    module = real("megatron.bridge.data.datasets.packed_parquet")
    export(str(out), "megatron-bridge", str(tmp_path), Options(pack_length=512))
    tokenizer = SimpleNamespace(eos_id=-1, eod=-1, bos_id=-1)
    names = {"prompt_template": "{input} {output}", "truncation_field": "input", "label_key": "output"}
    data = module.GPTSFTPackedParquetDataset(
        f"{tmp_path}/*.idx.parquet", tokenizer, max_seq_length=512, pad_to_max_length=True, **names
    )
    found = []
    for row in (data[i] for i in range(len(data))):
        module.GPTSFTPackedParquetDataset.validate_row(
            0, row["input_ids"], row["loss_mask"], row["seq_boundaries"][:-1]
        )
        batch = data.collate_fn([row])
        size = len(row["input_ids"]) - (len(row["seq_boundaries"]) - 1)
        labels, mask = batch["labels"][0][:size].tolist(), batch["loss_mask"][0][:size].tolist()
        found += [label for label, trained in zip(labels, mask, strict=True) if trained]
        assert batch["tokens"][0][:size].tolist() == [
            token for ids, _ in as_read(row | {"seq_start_id": row["seq_boundaries"][:-1]}) for token in ids[:-1]
        ]
    assert sorted(found) == sorted(label for row in pruned for label in row["labels"] if label != -100)
