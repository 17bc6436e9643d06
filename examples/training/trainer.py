"""Use Q-Tuning in transformers.Trainer with one added line (marked).

python examples/training/trainer.py --enable-q-tuning --q-tuning-sample-keep-ratio 0.5
"""

from __future__ import annotations

import argparse
import logging
import tempfile

from datasets import Dataset
from rows import MODEL, demo_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from qtune_service.training import add_q_tuning_arguments, q_tuning_arguments
from qtune_service.training.hf_trainer import enable_q_tuning


def main() -> None:
    """Train a few steps on the data of the demo."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    args = add_q_tuning_arguments(argparse.ArgumentParser()).parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            AutoModelForCausalLM.from_pretrained(MODEL),
            TrainingArguments(
                folder, per_device_train_batch_size=16, gradient_accumulation_steps=4, max_steps=3, logging_steps=1,
                save_strategy="no", report_to=[],
            ),
            train_dataset=Dataset.from_dict(demo_rows(tokenizer, 192)),
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )  # fmt: skip
        if arguments := q_tuning_arguments(args):
            enable_q_tuning(trainer, arguments)  # the added line
        trainer.train()


if __name__ == "__main__":
    main()
