"""Build everything that the demo ships: the dataset, the tokenizer and the model.

    python examples/demo/make_demo.py            # data.jsonl and model/: a few minutes on two CPU cores
    python examples/demo/make_demo.py --data     # data.jsonl alone: a second, needs no torch

The dataset is the same byte for byte in every run. The model knows the same facts in every run, and is equal bit for
bit only with the same hardware and libraries.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from dataset import build_rows, write_rows
from world import SEED, World, build_world

HERE = Path(__file__).resolve().parent
# The planted kinds are meaningless if the model has not learned its corpus.
LEAST_SHARE_HELD = 0.98


def main() -> int:
    """Write data.jsonl and, unless told otherwise, model/."""
    parser = argparse.ArgumentParser(description="Make the demo's dataset, tokenizer and model.")
    parser.add_argument("--data", action="store_true", help="write the dataset only")
    parser.add_argument("--output", type=Path, default=HERE, help="folder to write to (default: the demo's own)")
    parser.add_argument("--seed", type=int, default=SEED, help="another seed makes another world; use it with --output")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    world = build_world(args.seed)
    rows = build_rows(world, args.seed)
    write_rows(rows, args.output / "data.jsonl")
    print(f"{len(rows)} rows:", dict(sorted(Counter(r.planted for r in rows).items())))
    return 0 if args.data else _make_model(world, args.seed, args.output / "model")


def _make_model(world: World, seed: int, folder: Path) -> int:
    from train import Recipe, save, share_held, train_model, train_tokenizer

    recipe = Recipe(seed=seed)
    tokenizer = train_tokenizer(world, recipe)
    model = train_model(tokenizer, world, recipe)
    held = {status: share_held(model, tokenizer, world, status) for status in ("known", "myth")}
    print(f"parameters: {model.num_parameters():,}; held as taught:", {k: round(v, 3) for k, v in held.items()})
    if min(held.values()) < LEAST_SHARE_HELD:
        sys.exit(
            f"The model holds less than {LEAST_SHARE_HELD:.0%} of what it was taught: train longer (Recipe.steps)."
        )
    save(model, tokenizer, folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
