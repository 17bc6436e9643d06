"""Use Q-Tuning in TRL's SFTTrainer, without padding, with one added line (marked).

python examples/training/sft.py --enable-q-tuning --q-tuning-token-keep-ratio 0.5
"""

from __future__ import annotations

import argparse
import logging
import tempfile

import torch
from datasets import load_dataset
from rows import DEMO, MODEL
from trl import SFTConfig, SFTTrainer

from qtune_service.training import add_q_tuning_arguments, q_tuning_arguments
from qtune_service.training.hf_trainer import enable_q_tuning


def main() -> None:
    """Train a few steps on the conversations of the demo."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = add_q_tuning_arguments(argparse.ArgumentParser()).parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = load_dataset("json", data_files=str(DEMO / "data.jsonl"), split="train[:192]", cache_dir=folder)
        trainer = SFTTrainer(
            MODEL,
            args=SFTConfig(
                folder, per_device_train_batch_size=16, gradient_accumulation_steps=4, max_steps=3, logging_steps=1,
                assistant_only_loss=True, padding_free=True, max_length=None, save_strategy="no", report_to=[],
                bf16=torch.cuda.is_available(),
            ),
            train_dataset=data.select_columns(["messages"]),
        )  # fmt: skip
        if arguments := q_tuning_arguments(args):
            enable_q_tuning(trainer, arguments)  # the added line
        trainer.train()


if __name__ == "__main__":
    main()
