"""Use Q-Tuning in a plain torch loop with four added lines (numbered).

python examples/training/loop.py --enable-q-tuning --q-tuning-sample-keep-ratio 0.25
"""

from __future__ import annotations

import argparse
import logging

import torch
from rows import MODEL, demo_rows
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from qtune_service.training import QTuningPruner, add_q_tuning_arguments, next_token_loss, q_tuning_arguments


def main() -> None:
    """Train a few steps on the data of the demo."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=3)
    add_q_tuning_arguments(parser)  # 1
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    rows = demo_rows(tokenizer, args.batch_size * args.steps)
    pad = DataCollatorForSeq2Seq(tokenizer)
    arguments = q_tuning_arguments(args)
    pruner = QTuningPruner(arguments) if arguments else None  # 2
    for step in range(args.steps):
        chosen = range(step * args.batch_size, (step + 1) * args.batch_size)
        batch = dict(pad([{name: values[row] for name, values in rows.items()} for row in chosen]))
        num_tokens = int((batch["labels"][:, 1:] != -100).sum())
        if pruner:
            pruned = pruner.prune(model, batch)  # 3
            batch, num_tokens = pruned.batch, pruned.num_tokens
        logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        loss = next_token_loss(logits, batch["labels"], num_tokens)  # 4
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}: loss {loss.item():.3f} over {num_tokens} tokens of {len(batch['input_ids'])} rows")


if __name__ == "__main__":
    main()
