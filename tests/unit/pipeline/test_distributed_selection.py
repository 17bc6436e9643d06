"""Stage 1 of a job: groups in rounds give what one selection in memory gives, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from qtune_service.config import PruneSpec, SampleStrategy
from qtune_service.errors import DataError, SpecError
from qtune_service.pipeline import population
from qtune_service.pipeline.distributed_selection import work
from qtune_service.pipeline.population import Group, Population, ScoreShards
from qtune_service.pipeline.selection_stage import SelectionResult, find_thresholds
from qtune_service.pipeline.selection_tasks import SelectionContext
from qtune_service.pipeline.shard_selection import SampleLabels
from qtune_service.selection import distributions
from qtune_service.selection.distributions import EvenSample
from qtune_service.selection.plane import PlaneView, Quadrant, QuadrantRule
from qtune_service.selection.strategies import NAMES
from qtune_service.selection.thresholds import select
from qtune_service.storage import file_io

TIED = st.sampled_from([0.5, 1.0, 1.0, 1.0, 2.0])
SCORES = TIED | st.floats(0, 12)
PAIRS = st.lists(st.tuples(SCORES, SCORES), min_size=2, max_size=60)
LABELS = ("quadrants", "kept", "error_rank", "entropy_rank")
RATIOS = st.floats(0.001, 1) | st.sampled_from([0.125, 0.5, 1.0])


@dataclass(frozen=True)
class Held:
    """A source that holds its columns."""

    columns: dict[str, NDArray[Any]]

    def read(self, group: Group, *names: str) -> list[NDArray[Any]]:
        """Cut the group out."""
        return [self.columns[name][group.start : group.start + group.num_samples] for name in names]


def held(nll: Sequence[float] | NDArray[np.float64], entropy: Sequence[float] | NDArray[np.float64]) -> Held:
    """Return a source of two columns. Lengths go from 1 to 97."""
    tokens = (np.arange(len(nll)) * 31 % 97 + 1).astype(np.int32)
    return Held(
        {
            "mean_nll": np.array(nll, np.float64),
            "mean_entropy": np.array(entropy, np.float64),
            "num_tokens": tokens,
            "num_protected_tokens": np.minimum(tokens, 1 + tokens % 13),
        }
    )


def backwards(items: Sequence[tuple[int, bytes]], context: SelectionContext) -> Iterator[tuple[int, bytes]]:
    """Workers that finish in another order than they are given tasks in."""
    for index, payload in reversed(items):
        yield index, work(index, payload, context)


def find(
    source: Any, shards: list[int], folder: Path, prune: PruneSpec | None = None, rule: QuadrantRule | None = None
) -> SelectionResult:
    """Stage 1 over shards of so many samples."""
    return find_thresholds(
        Population.of(source, dict(enumerate(shards))),
        prune or PruneSpec(),
        rule=rule,
        workers=backwards,
        folder=str(folder / "ranks"),
        advance=lambda _: None,
    )


def labels_of(result: SelectionResult) -> SampleLabels:
    """Of all samples, read shard by shard as pruning does."""
    parts = [result.labels_of(group, span).read() for group, span in result.shards().values()]
    return SampleLabels(*(np.concatenate([getattr(p, n) for p in parts]) for n in LABELS))


def check_same(distributed: SelectionResult, in_memory: SelectionResult) -> None:
    """All that a job writes of stage 1."""
    for name in ("thresholds", "target", "kept", "disjoint_capacity", "num_samples", "counts"):
        assert getattr(distributed.summary, name) == getattr(in_memory.summary, name), name
    assert distributed.distributions == in_memory.distributions
    for name in LABELS:
        np.testing.assert_array_equal(getattr(labels_of(distributed), name), getattr(labels_of(in_memory), name))
    assert distributed.picks.examples == in_memory.picks.examples
    np.testing.assert_array_equal(distributed.picks.points, in_memory.picks.points)
    for column in fields(EvenSample):
        got, want = (getattr(v.sample, column.name) for v in (distributed, in_memory))
        np.testing.assert_array_equal(got, want)
    assert distributed.curve == in_memory.curve
    assert distributed.weighing == in_memory.weighing


def cut(total: int, sizes: list[int]) -> list[int]:
    """Shards of the given sizes, until all samples are in one."""
    shards: list[int] = []
    while (left := total - sum(shards)) > 0:
        shards.append(min(left, sizes[len(shards) % len(sizes)]))
    return shards


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(PAIRS, RATIOS, st.none() | st.integers(1, 12), st.lists(st.integers(1, 20), min_size=1, max_size=4))
def test_rounds_give_what_one_selection_gives(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pairs: list[tuple[float, float]],
    ratio: float,
    max_iter: int | None,
    sizes: list[int],
) -> None:
    """Thresholds, labels, ranks, counts, figures and picks are equal; and are those of selection.thresholds.select."""
    nll, entropy = np.array(pairs).T
    source, shards = held(nll, entropy), cut(len(pairs), sizes)
    prune = PruneSpec(sample_keep_ratio=ratio, bisect_max_iter=max_iter)
    in_memory = find(source, shards, tmp_path, prune)
    with monkeypatch.context() as patch:
        patch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 5)
        distributed = find(source, shards, tmp_path, prune)
    check_same(distributed, in_memory)
    selection = select(nll, entropy, sample_keep_ratio=ratio, bisect_max_iter=max_iter)
    found, everything = labels_of(distributed), slice(0, len(pairs))
    np.testing.assert_array_equal(found.quadrants, selection.labels)
    np.testing.assert_array_equal(found.error_rank, selection.p(everything))
    np.testing.assert_array_equal(found.entropy_rank, selection.e(everything))
    assert distributed.summary.thresholds == selection.thresholds


@pytest.mark.parametrize("strategy", NAMES)
@pytest.mark.parametrize("ratio", [0.1, 0.6])
def test_other_strategies_choose_the_same_distributed(
    strategy: SampleStrategy, ratio: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is kept, by how much it weighs, and where it lies on the method's plane."""
    rng = np.random.default_rng(4)
    nll, entropy = rng.lognormal(size=(2, 2_000)).round(2)
    source, shards = held(nll, entropy), cut(2_000, [90, 30])
    prune = PruneSpec(sample_keep_ratio=ratio, strategy=strategy, seed=3)
    in_memory = find(source, shards, tmp_path, prune)
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 300)
    distributed = find(source, shards, tmp_path, prune)
    check_same(distributed, in_memory)
    assert (
        int(labels_of(distributed).kept.sum())
        == distributed.summary.kept
        >= distributed.summary.target
        == 2_000 * ratio
    )
    assert (distributed.weighing is None) == (strategy != "infobatch")
    assert (
        distributed.summary.thresholds
        == find(source, shards, tmp_path, PruneSpec(sample_keep_ratio=ratio)).summary.thresholds
    )
    assert distributed.curve == ()


@pytest.mark.parametrize("kind", ["distinct", "tenths", "half equal", "all equal", "sorted"])
def test_thousands_of_samples_with_a_sample_of_a_part(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows, ranges and picks that leave something out agree as well; no files are left but ranks and labels."""
    rng = np.random.default_rng(1)
    nll, entropy = np.exp(rng.normal(size=(2, 90_000)))
    if kind == "tenths":
        nll, entropy = nll.round(1), entropy.round(1)
    if kind == "half equal":
        nll = np.where(rng.random(len(nll)) < 0.5, 1.0, nll)
    if kind == "all equal":
        nll = np.ones_like(nll)
    if kind == "sorted":
        nll = np.sort(nll)
    monkeypatch.setattr(distributions, "SAMPLE_LIMIT", 10_000)
    source, shards = held(nll, entropy), cut(len(nll), [3_000, 700])
    in_memory = find(source, shards, tmp_path)
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 10_000)
    distributed = find(source, shards, tmp_path)
    assert len(distributed.groups) == 12
    check_same(distributed, in_memory)
    kinds = [uri.rsplit("/", 1)[-1].rpartition("-")[0] for uri in file_io.list_files(str(tmp_path / "ranks"))]
    assert sorted(kinds) == ["labels"] * 12 + ["ranks"] * 12


def test_a_rule_is_called_group_by_group_with_ranks_among_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It sees each group once, in order, and by what it sees of a sample decides as it would on all at once."""
    rng = np.random.default_rng(2)
    nll, entropy = rng.lognormal(size=(2, 1_000))
    seen: list[PlaneView] = []

    def lenient(plane: PlaneView) -> NDArray[np.int8]:
        seen.append(plane)
        labels = plane.labels.copy()
        near = (plane.perplexity <= 1.5 * plane.thresholds.ppl_high) & (plane.p + plane.e < 1.9)
        labels[(labels == Quadrant.Q1) & near] = Quadrant.Q4
        return labels

    source, shards = held(nll, entropy), cut(1_000, [90])
    in_memory = find(source, shards, tmp_path, rule=lenient)
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 300)
    distributed = find(source, shards, tmp_path, rule=lenient)
    check_same(distributed, in_memory)
    assert in_memory.summary.kept > in_memory.summary.target
    whole, *groups = seen
    assert [len(g.labels) for g in groups] == [270, 270, 270, 190]
    assert {plane.num_samples for plane in seen} == {1_000}
    for name in ("mean_nll", "mean_entropy", "perplexity", "p", "e", "labels"):
        np.testing.assert_array_equal(np.concatenate([getattr(g, name) for g in groups]), getattr(whole, name))


def test_a_rule_that_breaks_on_a_group_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same error as at once."""
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 20)
    with pytest.raises(SpecError, match=r"returned shape \(3,\) for 20 samples"):
        find(held(list(range(60)), list(range(60))), [10] * 6, tmp_path, rule=lambda _: np.ones(3, np.int8))


def test_a_score_that_cannot_be_ranked_is_named_by_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in a later group."""
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 20)
    nll = [math.nan if i == 47 else i / 8 for i in range(60)]
    with pytest.raises(DataError, match="mean_nll of sample 47 is nan"):
        find(held(nll, list(range(60))), [10] * 6, tmp_path)


def test_groups_are_consecutive_and_no_larger_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard is never cut, so one that is too large is a group of its own."""
    monkeypatch.setattr(population, "MAX_IN_MEMORY_SAMPLES", 10)
    shards = {0: 4, 2: 6, 3: 1, 4: 25, 7: 5, 8: 5}
    groups = Population.of(held([], []), shards).groups
    assert [dict(g.shards) for g in groups] == [{0: 4, 2: 6}, {3: 1}, {4: 25}, {7: 5, 8: 5}]
    assert [(g.index, g.start, g.num_samples) for g in groups] == [(0, 0, 10), (1, 10, 1), (2, 11, 25), (3, 36, 10)]
    assert groups[3].spans() == {7: slice(0, 5), 8: slice(5, 10)}


def test_columns_are_read_from_score_shards_in_order(tmp_path: Path) -> None:
    """Each value at its sample's place, shard after shard."""
    import pyarrow as pa

    source = ScoreShards(str(tmp_path))
    for shard, values in ((0, [1.0, 2.0]), (3, [3.0, 4.0, 5.0])):
        table = pa.table(
            {"mean_nll": values, "mean_entropy": [-v for v in values], "num_tokens": [int(v) for v in values]}
        )
        file_io.write_table(str(tmp_path / "scores" / f"part-{shard:05}.parquet"), table)
    nll, tokens = source.read(Group(0, 0, {0: 2, 3: 3}), "mean_nll", "num_tokens")
    assert nll.tolist() == tokens.tolist() == [1, 2, 3, 4, 5]
    assert [c.dtype.name for c in (nll, tokens)] == ["float64", "int32"]
