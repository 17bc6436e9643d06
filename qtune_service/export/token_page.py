"""token_pruning_visualization.html: samples with the tokens that stage 2 removed in red, the kept ones in green.

The page needs nothing but itself and runs no script: a token's perplexity is its title, which a browser shows on
hover. Its policy allows no connection. How tokens become text, and what of long samples is left out, is the report's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from qtune_service.output.reader import FinishedOutput
from qtune_service.output.samples import ScoredSample
from qtune_service.output.texts import Decode
from qtune_service.report import wording
from qtune_service.report.data import ExampleSample, ExampleToken
from qtune_service.report.examples import Run, token_runs
from qtune_service.report.tokens import token_texts

MAX_SAMPLES = 50
MAX_TOKENS = 1_000
"""Trained tokens of a sample that the page shows; it says how many more there are."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample with its runs of text."""

    sample: ExampleSample
    runs: tuple[Run, ...]
    num_trained: int
    num_removed: int


def show(sample: ScoredSample, decode: Decode) -> Shown:
    """Turn a sample's tokens into text."""
    tokens = tuple(_tokens(sample, token_texts(decode, sample.input_ids.tolist())))
    quadrant: Any = sample.quadrant
    name = sample.sample_id if sample.own.get("id") is None else str(sample.own["id"])
    example = ExampleSample(name, sample.source, sample.line, quadrant, sample.perplexity, sample.mean_entropy, tokens)
    return Shown(example, token_runs(example, MAX_TOKENS), int(sample.loss_mask.sum()), sample.tokens_removed)


def _tokens(sample: ScoredSample, texts: Sequence[str]) -> Iterator[ExampleToken]:
    for i, text in enumerate(texts):
        if sample.loss_mask[i]:
            scores = (float(sample.nll[i]), float(sample.entropy[i]), float(sample.smoothed[i]))
            yield ExampleToken(text, "kept" if sample.final_mask[i] else "removed", *scores)
        else:
            yield ExampleToken(text, "prompt")


def render_page(samples: Sequence[Shown], finished: FinishedOutput) -> str:
    """The page. Deterministic."""
    title = f"Tokens pruned in {', '.join(finished.spec.input.paths)}"
    template = _environment().get_template("token_page.html.j2")
    page = template.render(examples=samples, prune=finished.prune, title=title, policy=POLICY)
    return page.encode("utf-8", "backslashreplace").decode()  # JSON data can hold half a surrogate pair


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("qtune_service.export"), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(count=wording.count, number=wording.number, shorten=wording.shorten)
    return environment
