"""TRL for real: one step of its SFTTrainer on an export, its loss computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, load_dataset

from qtune_service.export.run import export
from qtune_service.export.writers import Options
from tests.jobs import rows

trl = pytest.importorskip("trl", reason="needs trl, one of the dev extras")


def tiny_model() -> Any:
    """Two layers of random weights, large ones, so that tokens have losses far apart."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=1024, initializer_range=0.3, **size, **heads))


def trainer(data: Dataset, out: Path, folder: Path, max_length: int | None = None, **more: Any) -> Any:
    """Return an SFTTrainer as the documentation makes it, with all rows in one batch."""
    from transformers import AutoTokenizer

    args = trl.SFTConfig(
        output_dir=str(folder),
        max_length=max_length,
        max_steps=1,
        per_device_train_batch_size=len(data),
        learning_rate=0.1,
        report_to=[],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        save_strategy="no",
        disable_tqdm=True,
        **more,
    )
    tokenizer = AutoTokenizer.from_pretrained(out / "tokenizer")
    return trl.SFTTrainer(tiny_model(), args=args, train_dataset=data, processing_class=tokenizer)


@pytest.fixture(scope="module")
def data(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Load the export by the line that `qtune export` prints."""
    folder = tmp_path_factory.mktemp("trl")
    export(finished.root, "trl", str(folder), Options())
    files = f"{folder}/*.parquet"
    return load_dataset("parquet", data_files=files, split="train", cache_dir=str(folder / "cache")).select(range(16))


def losses_by_hand(model: Any, samples: list[dict[str, Any]]) -> list[np.ndarray[Any, Any]]:
    """-log p of each token given those before it, position 0 left out; (T - 1,) a sample, in float64."""
    import torch

    found = []
    for sample in samples:
        ids = torch.tensor([sample["input_ids"]])
        with torch.no_grad():
            log_p = model(ids).logits[0, :-1].double().log_softmax(-1)
        found.append(-log_p.gather(-1, ids[0, 1:, None])[:, 0].numpy())
    return found


def test_the_loss_is_over_the_tokens_that_stage_2_left(data: Dataset, out: Path, tmp_path: Path) -> None:
    """By hand: the mean over final masks, to 1e-5. With the tokens that stage 2 removed it would be another."""
    sft = trainer(data, out, tmp_path)
    (batch,) = sft.get_train_dataloader()
    loss = sft.compute_loss(sft.model, dict(batch)).item()
    samples = rows(out / "pruned")[:16]
    scores = {row["id"]: row["loss_mask"] for row in rows(out / "scores")}
    by_hand = losses_by_hand(tiny_model(), samples)

    def mean_over(masks: list[list[int]]) -> float:
        chosen = [nll[np.array(mask[1:]) == 1] for nll, mask in zip(by_hand, masks, strict=True)]
        return float(np.concatenate(chosen).mean())

    final, before = [s["loss_mask"] for s in samples], [scores[s["id"]] for s in samples]
    assert sum(map(sum, final)) < sum(map(sum, before)), "stage 2 removed some tokens of these"
    assert loss == pytest.approx(mean_over(final), abs=1e-5)
    assert loss != pytest.approx(mean_over(before), abs=1e-4)


def test_masked_tokens_have_no_gradient(data: Dataset, out: Path, tmp_path: Path) -> None:
    """The gradient of TRL's loss is that of the sum over kept tokens, by hand, for every weight."""
    import torch

    sft = trainer(data, out, tmp_path)
    (batch,) = sft.get_train_dataloader()
    sft.compute_loss(sft.model, dict(batch)).backward()
    model, total, number = tiny_model(), torch.zeros(()), 0
    for sample in rows(out / "pruned")[:16]:
        ids, mask = torch.tensor([sample["input_ids"]]), torch.tensor(sample["loss_mask"][1:]) == 1
        log_p = model(ids).logits[0, :-1].float().log_softmax(-1)
        total = total - log_p.gather(-1, ids[0, 1:, None])[mask, 0].sum()
        number += int(mask.sum())
    (total / number).backward()
    for (name, ours), theirs in zip(model.named_parameters(), sft.model.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-6), name


def test_a_step_trains(data: Dataset, out: Path, tmp_path: Path) -> None:
    """SFTTrainer takes the export through a whole step: the loss of this batch falls."""
    sft = trainer(data, out, tmp_path)
    (batch,) = sft.get_train_dataloader()
    before = sft.compute_loss(sft.model, dict(batch)).item()
    sft.train()
    assert sft.compute_loss(sft.model, dict(batch)).item() < before


def test_older_versions_make_the_same_labels_of_the_mask(data: Dataset, out: Path, tmp_path: Path) -> None:
    """Without `labels`, TRL makes them of `assistant_masks`, and gets ours."""
    sft = trainer(data.remove_columns("labels"), out, tmp_path)
    (batch,) = sft.get_train_dataloader()
    (ours,) = trainer(data, out, tmp_path).get_train_dataloader()
    assert batch["labels"].tolist() == ours["labels"].tolist()


def test_packing_keeps_the_labels(data: Dataset, out: Path, tmp_path: Path) -> None:
    """TRL's own packing moves samples together, and no label gets lost or is added."""
    sft = trainer(data, out, tmp_path, max_length=512, packing=True)
    packed = [label for row in sft.train_dataset for label in row["labels"] if label != -100]
    assert sorted(packed) == sorted(label for row in data for label in row["labels"] if label != -100)
