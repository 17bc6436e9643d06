"""Use Q-Tuning with Accelerate: all micro-batches of a step, on all ranks, are pruned as one population.

python examples/training/accelerate_loop.py --enable-q-tuning
torchrun --nproc-per-node 2 examples/training/accelerate_loop.py --enable-q-tuning
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging

import torch
from accelerate import Accelerator
from rows import MODEL, demo_rows
from torch.utils.data import DataLoader
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from qtune_service.training import QTuningPruner, add_q_tuning_arguments, q_tuning_arguments

ACCUMULATED = 2


def main() -> None:
    """Train one epoch on the data of the demo."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = add_q_tuning_arguments(argparse.ArgumentParser())
    parser.add_argument("--batch-size", type=int, default=16)
    args = parser.parse_args()
    arguments = q_tuning_arguments(args) or parser.error("this example needs --enable-q-tuning")
    pruner = QTuningPruner(arguments)
    accelerator = Accelerator(cpu=not torch.cuda.is_available())  # cpu=True connects processes on CPUs
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).train()
    rows = demo_rows(tokenizer, 128)
    samples = [{name: values[row] for name, values in rows.items()} for row in range(128)]
    loader = DataLoader(samples, args.batch_size, collate_fn=DataCollatorForSeq2Seq(tokenizer))
    model, optimizer, loader = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 1e-4), loader)
    batches = iter(loader)
    while micro := [dict(batch) for batch in itertools.islice(batches, ACCUMULATED)]:
        step = pruner.prune_step(model, micro)
        for batch in step.batches:
            is_last = batch is step.batches[-1]
            with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
                logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
                accelerator.backward(step.loss(logits, batch))  # already divided by the tokens of the whole step
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(f"step {step.record.step}: {step.num_tokens} tokens of {step.record.kept} rows")


if __name__ == "__main__":
    main()
