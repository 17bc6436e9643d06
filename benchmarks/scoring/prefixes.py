"""Measure what shared prefixes and duplicates save: the engine with its prefix cache against without it.

Three kinds of data, random tokens on a random model in float32, 60% of what is not shared is trained:

    system       50 conversations over one system prompt of 800 tokens
    turns        conversations of 8 turns, each turn a sample whose prompt is all before it
    duplicates   every sample four times

Within a call the engine runs a sequence once, and what begins a longer one not at all, with a cache or without. So
without it the turns of a conversation are in calls of their own, and so are the copies of a sample.

Each setting runs in a process of its own, since a process holds one engine. The scores of both are compared.

    python -m benchmarks.scoring.prefixes --model tiny
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.scoring.material import SHAPES, make_model
from qtune_service.config import EngineSpec, ModelSpec
from qtune_service.samples import Sample, TokenScores
from qtune_service.scoring.process_environment import allocator_environment

KINDS = ("system", "turns", "duplicates")
NUM_CONVERSATIONS, SYSTEM_TOKENS, OWN_TOKENS = 50, 800, 240
NUM_DIALOGUES, TURNS, TURN_TOKENS = 8, 8, 120
COPIES = 4
TRAINED_SHARE = 0.6
REPEATS = 3


def make_samples(kind: str, vocab: int) -> list[list[Sample]]:
    """Return samples in the calls that score them without a cache: one call, or one for each turn or copy."""
    rng = np.random.default_rng(7)

    def tokens(count: int) -> np.ndarray:
        return rng.integers(3, vocab, count).astype(np.int32)

    if kind == "system":
        system = tokens(SYSTEM_TOKENS)
        return [[_sample(np.concatenate([system, tokens(OWN_TOKENS)]), OWN_TOKENS) for _ in range(NUM_CONVERSATIONS)]]
    if kind == "turns":
        dialogues = [tokens(TURNS * TURN_TOKENS) for _ in range(NUM_DIALOGUES)]
        return [[_sample(d[: (t + 1) * TURN_TOKENS], TURN_TOKENS) for d in dialogues] for t in range(TURNS)]
    return [[_sample(ids, OWN_TOKENS) for ids in [tokens(2 * OWN_TOKENS) for _ in range(NUM_CONVERSATIONS)]]] * COPIES


def _sample(ids: np.ndarray, own: int) -> Sample:
    """Return a sample of which the last part of its own tokens is trained."""
    mask = np.zeros(len(ids), np.int8)
    mask[len(ids) - round(TRAINED_SHARE * own) :] = 1
    return Sample(ids, mask)


def measure(model: Path, kind: str, vocab: int, *, caching: bool) -> dict[str, float]:
    """Return the best time of some runs in this process, and write the scores to the model's parent folder."""
    from qtune_service.scoring.vllm.engine import VllmScorer

    scorer = VllmScorer(ModelSpec(name=str(model), dtype="float32"), EngineSpec(enable_prefix_caching=caching))
    calls = make_samples(kind, vocab)
    if caching:
        calls = [[sample for call in calls for sample in call]]
    scorer.score(calls[0][:2])
    seconds, scores = [], []
    for _ in range(REPEATS):
        began_s = time.perf_counter()
        scores = [score for call in calls for score in scorer.score(call)]
        seconds.append(time.perf_counter() - began_s)
    _save(_file(model, kind, caching=caching), scores)
    return {"seconds": min(seconds), "cached_tokens": scorer.cached_tokens}


def _save(path: Path, scores: Sequence[TokenScores]) -> None:
    np.savez(path, *(np.stack([s.nll, s.entropy]) for s in scores))


def _file(model: Path, kind: str, *, caching: bool) -> Path:
    return model.parent / f"prefixes-{kind}-{'on' if caching else 'off'}.npz"


def measure_apart(name: str, kind: str, work: Path, *, caching: bool) -> dict[str, float]:
    """Measure in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.scoring.prefixes", "--model", name, "--work", str(work), "--one", kind]
    command += [] if caching else ["--off"]
    environment = {**os.environ, **allocator_environment()}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows(name: str, work: Path) -> Iterator[str]:
    """Yield the rows of the table."""
    model = make_model(SHAPES[name], work / name / "model")
    yield "| data | samples | tokens | from the cache | off, s | on, s | ratio | max difference, nats |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for kind in KINDS:
        off, on = (measure_apart(name, kind, work, caching=caching) for caching in (False, True))
        samples = [s for call in make_samples(kind, SHAPES[name].vocab) for s in call]
        total = sum(len(s.input_ids) for s in samples)
        with np.load(_file(model, kind, caching=False)) as a, np.load(_file(model, kind, caching=True)) as b:
            worst = max(float(np.abs(a[key] - b[key]).max()) for key in a.files)
        yield (
            f"| {kind} | {len(samples)} | {total:,} | {on['cached_tokens']:,.0f} | {off['seconds']:.2f} "
            f"| {on['seconds']:.2f} | {off['seconds'] / on['seconds']:.2f} x | {worst:.1e} |"
        )


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=tuple(SHAPES), default="tiny")
    work = Path(tempfile.gettempdir()) / "qtune-benchmark-scoring"
    parser.add_argument("--work", type=Path, default=work, help="models (made once) and scores")
    parser.add_argument("--one", choices=KINDS, help="measure one kind here and print JSON")
    parser.add_argument("--off", action="store_true", help="with --one: without the cache")
    arguments = parser.parse_args()
    if arguments.one:
        shape = SHAPES[arguments.model]
        model = arguments.work / arguments.model / "model"
        print(json.dumps(measure(model, arguments.one, shape.vocab, caching=not arguments.off)))
        return
    for line in rows(arguments.model, arguments.work):
        print(line, flush=True)


if __name__ == "__main__":
    main()
