"""Analysis files: a finished output as JSON, to read with jq or a notebook, and a page of pruned tokens.

    stage1_kept.json                           samples that stage 1 kept
    stage1_removed.json                        samples that stage 1 dropped, by quadrant
    stage2_final.json                          the kept samples, with the tokens that stage 2 removed from the loss
    stage2_pruned_tokens_visualization.json    the samples that stage 2 pruned, token by token
    token_pruning_visualization.html           the first of these as a page, removed tokens red and kept ones green
    summary_statistics.json                    the summary of the job

Every sample has its own fields, an `id` (its own or the job's) and `metadata`. Token lists hold trained tokens only.
Files are written as streams in four passes, with the samples of one shard in memory. Each pass builds only the samples
that it writes.

The page is self-contained and runs no script. The title of a token is its perplexity, which a browser shows on hover.
Its content security policy allows no connection. Tokens become text as in the report.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray

from qtune_service.errors import SpecError
from qtune_service.export import writers
from qtune_service.export.writers import Export
from qtune_service.ingest.schema import output_names
from qtune_service.output.reader import Decode, FinishedOutput, ScoredSample, read_samples
from qtune_service.report import text as wording
from qtune_service.report.data import ExampleSample, TokenView
from qtune_service.report.examples import Run, token_runs
from qtune_service.report.token_view import token_views
from qtune_service.samples import perplexity
from qtune_service.selection.plane import Quadrant
from qtune_service.storage import file_io
from qtune_service.storage.file_io import WrittenFile

MAX_SAMPLES = 50
MAX_TOKENS = 1_000
"""Limit on the trained tokens of a sample on the page, which shows how many more there are."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
SampleFilter = Callable[[NDArray[np.int8], NDArray[np.bool_]], NDArray[np.bool_]]
"""Returns a mask (S,) of samples from their quadrants 1..4 (S,), and whether they are kept (S,)."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A sample with its runs of text."""

    sample: ExampleSample
    runs: tuple[Run, ...]
    num_trained: int
    num_removed: int


def show(sample: ScoredSample, decode: Decode) -> Shown:
    """Return a sample with its tokens as runs of text."""
    tokens = token_views(decode, sample.tokens)
    quadrant: Any = sample.quadrant
    name = sample.sample_id if sample.own.get("id") is None else str(sample.own["id"])
    example = ExampleSample(name, sample.source, sample.line, quadrant, sample.perplexity, sample.mean_entropy, tokens)
    num_trained = int(sample.tokens.loss_mask.sum())
    return Shown(example, token_runs(example, MAX_TOKENS), num_trained, sample.tokens.num_removed)


def render_page(samples: Sequence[Shown], finished: FinishedOutput) -> str:
    """Return the page. The same samples give the same bytes."""
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


def check_size(export: Export) -> None:
    """Raise SpecError if the output is too large for analysis files."""
    finished, limit = export.finished, export.options.max_samples
    if finished.num_samples > limit:
        raise SpecError(
            f"{finished.num_samples:,} scored samples are more than the limit of analysis files ({limit:,})",
            f"The same data is in Parquet, in scores/, quadrants/ and pruned/. qtune inspect {finished.root} shows it, "
            "and --to jsonl writes the kept samples as text. To write the analysis files anyway, add --max-samples "
            f"{finished.num_samples}.",
        )


def write_analysis(export: Export) -> Iterator[WrittenFile]:
    """Write the six files."""
    finished = export.finished
    view = _Samples(finished)
    export.num_rows = finished.num_samples

    def put(name: str, chunks: Iterator[bytes]) -> WrittenFile:
        return file_io.write_chunks(file_io.join(export.folder, name), chunks)

    yield put("stage1_kept.json", writers.array(view.stage1(_kept)))
    yield put("stage1_removed.json", view.removed())
    yield put("stage2_final.json", writers.array(view.stage2()))
    yield put("stage2_pruned_tokens_visualization.json", writers.array(view.with_tokens()))
    yield put("token_pruning_visualization.html", iter([view.page().encode()]))
    summary = finished.folder.read_json("summary_statistics.json")
    yield file_io.write_json(file_io.join(export.folder, "summary_statistics.json"), summary)


def _kept(_labels: NDArray[np.int8], kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return kept


def _dropped_from(quadrant: Quadrant) -> SampleFilter:
    return lambda labels, kept: (labels == quadrant) & ~kept


@dataclass(frozen=True, slots=True)
class _Samples:
    """Samples of an output as plain data."""

    finished: FinishedOutput

    def samples(self, matches: SampleFilter) -> Iterator[ScoredSample]:
        for shard in self.finished.shards:
            rows = np.flatnonzero(matches(*self.finished.labels(shard)))
            if len(rows):
                yield from read_samples(self.finished, shard, rows.tolist())

    def pruned(self) -> Iterator[ScoredSample]:
        """Yield the samples with tokens that stage 2 prunes."""
        if self.finished.prune.strategy == "q_tuning":
            return self.samples(lambda labels, kept: kept & (labels == Quadrant.Q2))
        return self.samples(_kept)

    # --- files

    def stage1(self, matches: SampleFilter) -> Iterator[dict[str, Any]]:
        return (self._plain(sample, metadata=_scores(sample)) for sample in self.samples(matches))

    def removed(self) -> Iterator[bytes]:
        """Yield JSON by quadrant: Q1 and Q3 for the method, all quadrants with dropped samples for other strategies."""
        dropped = {Quadrant.Q1, Quadrant.Q3} if self.finished.prune.strategy == "q_tuning" else set()
        for shard in self.finished.shards:
            labels, kept = self.finished.labels(shard)
            dropped |= {Quadrant(label) for label in np.unique(labels[~kept]).tolist()}
        yield b"{"
        for number, quadrant in enumerate(sorted(dropped)):
            yield f'{"," if number else ""}\n"{quadrant.name}": '.encode()
            yield from writers.array(self.stage1(_dropped_from(quadrant)))
        yield b"\n}\n"

    def stage2(self) -> Iterator[dict[str, Any]]:
        return (self._plain(s, metadata=_scores(s) | self._masks(s)) for s in self.samples(_kept))

    def with_tokens(self) -> Iterator[dict[str, Any]]:
        decode = self.finished.decoder()
        for sample in self.pruned():
            tokens = [_token(token) for token in token_views(decode, sample.tokens)]
            yield self._plain(sample, metadata=_scores(sample) | self._masks(sample), tokens=tokens)

    def page(self) -> str:
        decode = self.finished.decoder()
        return render_page([show(sample, decode) for sample in islice(self.pruned(), MAX_SAMPLES)], self.finished)

    # --- samples

    def _plain(self, sample: ScoredSample, **ours: Any) -> dict[str, Any]:
        """Return the sample's own fields, renamed to `original_NAME` if the name is in use, and then ours."""
        names = output_names(sample.own, ours)
        own = {names[name]: value for name, value in sample.own.items()}
        if own.get("id") is None:
            own = {"id": sample.sample_id} | {name: value for name, value in own.items() if name != "id"}
        return own | ours

    def _masks(self, sample: ScoredSample) -> dict[str, Any]:
        if self.finished.prune.strategy == "q_tuning" and sample.quadrant != "Q2":
            return {"tokens_kept": "all", "tokens_removed": 0}
        mask = sample.tokens.final_mask[sample.tokens.loss_mask == 1]
        return {"token_mask": mask, "tokens_kept": int(mask.sum()), "tokens_removed": sample.tokens.num_removed}


def _scores(sample: ScoredSample) -> dict[str, Any]:
    tokens = sample.tokens
    trained = tokens.loss_mask == 1
    return {
        "ppl": sample.perplexity,
        "entropy": sample.mean_entropy,
        "token_ppls": perplexity(tokens.nll[trained]),
        "token_entropies": tokens.entropy[trained],
        "quadrant": sample.quadrant,
    }


def _token(token: TokenView) -> dict[str, Any]:
    shown = {"text": token.text, "state": token.state}
    return shown if token.nll is None else shown | {"ppl": float(perplexity(token.nll)), "entropy": token.entropy}
