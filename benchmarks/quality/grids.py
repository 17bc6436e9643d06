"""What is run, section by section, in the order of what it is worth. `chief` is for more seeds of what matters most.

Steps and learning rates were chosen on random rows alone, such that these end neither at 0 nor at 1, and hold for
every method. Seeds are set by the caller.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.quality.spec import RunSpec

ADDITION = RunSpec("addition", steps=1000, warmup=100)
REWRITE = RunSpec("rewrite", steps=800, warmup=100, noise="systematic", noise_rate=0.15)
LONG = RunSpec("long", steps=400, warmup=80, noise="spans", noise_rate=0.4, trivial_rate=0.2, eval_every=100)
PROBE = RunSpec("addition-plain", steps=3000, rows=64, width=128, layers=3, learning_rate=1e-3, eval_every=250)
MIXED = RunSpec("mixed", steps=800, warmup=100, noise="of both", trivial_rate=0.2)
GSM8K = RunSpec(
    "gsm8k", steps=60, warmup=12, rows=8, noise="swapped", trivial_rate=0.0, learning_rate=1e-3, eval_every=30
)

MAIN = (
    ("random", "dynamic"),
    ("q-tuning", "dynamic"),
    ("perplexity-highest", "dynamic"),
    ("entropy-highest", "dynamic"),
    ("random", "static"),
    ("q-tuning", "static"),
    ("infobatch", "dynamic"),
)
PROBED = ("random", "q-tuning", "perplexity-highest", "entropy-highest", "perplexity-lowest", "all-candidates")
CHIEF = ("random", "q-tuning", "perplexity-highest")
STARTS = (replace(ADDITION, warmup=300), REWRITE)
"""Each task with a warm-up after which its scores mean something."""
RATIOS = (0.5, 0.25, 0.125)
NOISES = (("uniform", 0.0), *((noise, rate) for noise in ("uniform", "systematic") for rate in (0.15, 0.3, 0.45)))
WORDS = (
    ("random", "dynamic"),
    ("q-tuning", "dynamic"),
    ("q-tuning", "static"),
    ("perplexity-highest", "dynamic"),
    ("entropy-highest", "dynamic"),
    ("longest", "dynamic"),
    ("infobatch", "dynamic"),
)
Q_TUNING = {base.task: replace(base, method="q-tuning") for base in (ADDITION, REWRITE, LONG, MIXED, GSM8K)}


AGREEMENT = ((ADDITION, (100, 500, 800)), (REWRITE, (100, 300, 700)))
"""Where gradients are compared (agreement.py)."""

SECTIONS: dict[str, list[RunSpec]] = {
    "main": [replace(base, method=method, mode=mode) for base in (ADDITION, REWRITE) for method, mode in MAIN],
    "chief": [
        *(replace(base, method=method) for base in (ADDITION, REWRITE) for method in ("random", "q-tuning")),
        replace(Q_TUNING["addition"], warmup=300),
    ],
    "time": [replace(base, steps=2 * base.steps) for base in (ADDITION, REWRITE)],
    "tokens": [
        replace(Q_TUNING["rewrite"], token_ratio=0.7),
        replace(LONG, method="random"),
        *(
            replace(Q_TUNING["long"], token_ratio=ratio, token_strategy=strategy)
            for ratio, strategy in ((1.0, "neighbor"), (0.7, "neighbor"), (0.5, "neighbor"), (0.7, "random"))
        ),
    ],
    "keep": [
        replace(base, method=method, mode=mode, keep=keep)
        for base in STARTS
        for method, mode in MAIN[1:]
        for keep in RATIOS
    ],
    "ratios": [
        replace(base, method="q-tuning", mode=mode, keep=keep, token_ratio=tokens)
        for base in STARTS
        for mode in ("dynamic", "static")
        for tokens in (1.0, 0.7, 0.5)
        for keep in RATIOS
    ],
    "noise": [
        replace(base, method=method, noise=noise, noise_rate=rate)
        for base in STARTS
        for method in CHIEF
        for noise, rate in NOISES
    ],
    "mixed": [
        *(replace(MIXED, method=method) for method in (*CHIEF, "longest")),
        *(replace(Q_TUNING["mixed"], token_ratio=ratio, min_tokens=least) for ratio in (0.7, 0.5) for least in (1, 16)),
    ],
    "warmup": [
        *(replace(Q_TUNING["addition"], warmup=warmup) for warmup in (300, 600)),
        *(replace(Q_TUNING["rewrite"], warmup=warmup) for warmup in (0, 300)),
        *(replace(Q_TUNING[task], warmup=300, mode="static") for task in ("addition", "rewrite")),
    ],
    "gsm8k": [
        *(replace(GSM8K, method=method, mode=mode) for method, mode in WORDS),
        *(replace(Q_TUNING["gsm8k"], token_ratio=ratio) for ratio in (0.7, 0.5)),
    ],
    "gsm8k-keep": [replace(GSM8K, method=m, mode=mode, keep=keep) for m, mode in WORDS[1:] for keep in RATIOS[1:]],
    "probe": [replace(PROBE, method=method) for method in PROBED],
}
