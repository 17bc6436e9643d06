"""`qtune compare`: what other strategies would keep, as tables, data and pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from qtune_service.cli import app
from qtune_service.config import PruneSpec
from qtune_service.selection.plane import PlaneView
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs, demo_records, finished_output, prune

ALL = ["q_tuning", "random", "longest", "perplexity", "entropy", "infobatch"]


def compare(output: str, *arguments: object, code: int = 0) -> str:
    """Return the text that the command prints."""
    result = CliRunner().invoke(app, ["compare", output, *map(str, arguments)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


def figures(output: str, *arguments: object) -> Any:
    """Return the comparison as data."""
    found: Any = json.loads(compare(output, *arguments, "--json"))
    return found


def keep_first(plane: PlaneView) -> Any:
    """Keep the tenth with the lowest perplexity: a rule of one's own."""
    return np.where(plane.p < 0.1, 4, 3)


def test_every_strategy_at_every_ratio(outputs: FinishedOutputs) -> None:
    """By default all six at three ratios; targets are met, but for samples that tie."""
    found = figures(outputs.pruned.root)
    assert found["samples"] == NUM_SAMPLES
    assert [r["sample_keep_ratio"] for r in found["ratios"]] == [0.125, 0.25, 0.5]
    for ratio in found["ratios"]:
        assert [s["strategy"] for s in ratio["strategies"]] == ALL
        target = np.ceil(NUM_SAMPLES * ratio["sample_keep_ratio"])
        kept = {s["strategy"]: s["kept"] for s in ratio["strategies"]}
        assert kept["random"] == kept["longest"] == kept["infobatch"] == target
        assert all(target <= number <= target + 15 for number in kept.values())
        for strategy in ratio["strategies"]:
            assert sum(strategy["kept_by_group"].values()) == strategy["kept"]


def test_the_method_keeps_what_the_job_kept(outputs: FinishedOutputs) -> None:
    """At the job's own ratio, samples and tokens are the manifest's."""
    found = figures(outputs.pruned.root, "--ratios", 0.4, "--strategies", "q_tuning")
    (choice,) = found["ratios"][0]["strategies"]
    manifest = outputs.pruned.manifest
    assert (choice["kept"], choice["tokens"]) == (manifest["counts"]["kept"], manifest["tokens"]["after"])


def test_an_output_that_was_only_scored_is_enough(outputs: FinishedOutputs) -> None:
    """Nothing is written, and no pruning is needed before."""
    pruned, scored = (figures(o.root, "--ratios", 0.4) for o in (outputs.pruned, outputs.scored))
    assert pruned == scored


def test_options_take_several_values(outputs: FinishedOutputs) -> None:
    """After one name, as well as one by one."""
    together = figures(outputs.scored.root, "--ratios", 0.1, 0.3, "--strategies", "random", "longest", "--seed", 4)
    one_by_one = ("--ratios", 0.1, "--ratios", 0.3, "--strategies", "random", "--strategies", "longest", "--seed", 4)
    assert together == figures(outputs.scored.root, *one_by_one)


def test_orders_and_rules_by_name(outputs: FinishedOutputs) -> None:
    """`perplexity:lowest` is the other end; MODULE:FUNCTION a rule, which decides how many."""
    names = ("perplexity", "perplexity:lowest", "tests.unit.cli.test_comparing:keep_first")
    found = figures(outputs.scored.root, "--ratios", 0.5, "--strategies", *names)["ratios"][0]
    assert [s["strategy"] for s in found["strategies"]] == list(names)
    assert found["overlap"][0][1] < 0.3
    assert found["strategies"][2]["kept"] < NUM_SAMPLES * 0.2


def test_any_column_may_be_counted_by(outputs: FinishedOutputs) -> None:
    """By default the job's category; others by the name that they have in the records."""
    assert set(figures(outputs.scored.root)["groups"]) >= {"creature", "town"}
    by = figures(outputs.scored.root, "--by", "Entropy")
    assert (by["by"], set(by["groups"])) == ("Entropy", {str(i) for i in range(7)})


def test_people_get_tables(outputs: FinishedOutputs) -> None:
    """One row a strategy and one a group, with what each keeps."""
    text = compare(outputs.scored.root, "--ratios", 0.25)
    assert "sample_keep_ratio 0.25" in text
    assert all(f"∩ {name}" in text for name in ALL)
    assert "kept of category" in text


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<svg"), ("a.html", b"<!DOCTYPE html")])
def test_pictures(outputs: FinishedOutputs, tmp_path: Path, name: str, begins: bytes) -> None:
    """By the ending of the file; the page needs no network."""
    compare(outputs.scored.root, "--ratios", 0.25, "--plot", tmp_path / "new" / name)
    body = (tmp_path / "new" / name).read_bytes().lstrip()
    assert body.startswith(begins)
    assert b"cdn." not in body


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--strategies", "best"), "--strategies: 'best' is not a strategy"),
        (("--strategies", "perplexity:middle"), "perplexity"),
        (("--by", "colour"), "the records have no column 'colour'"),
        (("--plot", "a.pdf"), "charts cannot be written as '.pdf'"),
        (("--ratios", "1.5"), "sample_keep_ratio"),
    ],
)
def test_what_cannot_be_compared_is_told(outputs: FinishedOutputs, arguments: tuple[str, ...], said: str) -> None:
    """In one message, with exit code 2."""
    assert said in compare(outputs.scored.root, *arguments, code=2)


# --- several outputs


@pytest.fixture(scope="module")
def others(outputs: FinishedOutputs, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the output of another ratio, and one of a part of the records in another file."""
    folder = tmp_path_factory.mktemp("others")
    more = prune(outputs.scored, folder / "more", PruneSpec(sample_keep_ratio=0.7))
    part = finished_output(folder, demo_records()[5:], prune_by={"sample_keep_ratio": 0.4})
    return [more.root, part.root]


def test_several_outputs_are_compared_with_the_first(outputs: FinishedOutputs, others: list[str]) -> None:
    """Pairs and how they were found, samples that only one has, moves, correlations, and the farthest samples."""
    more, part = figures(outputs.pruned.root, *others, "--rows", 3)
    assert (more["a"], more["b"]) == (outputs.pruned.root, others[0])
    assert (more["paired"], more["paired_by"]) == (NUM_SAMPLES, {"place": NUM_SAMPLES})
    assert (more["only_in_a"], more["only_in_b"], more["farthest"]) == (0, 0, [])
    assert more["rank_correlation"] == {"error": pytest.approx(1), "entropy": pytest.approx(1)}
    assert sum(sum(row.values()) for row in more["moves"].values()) == NUM_SAMPLES
    assert more["kept"]["a"] == 0 < more["kept"]["b"]
    assert part["paired_by"] == {"content": NUM_SAMPLES - 5, "line": 0}
    assert (part["only_in_a"], part["only_in_b"], len(part["farthest"])) == (5, 0, 3)
    distances = [row["distance"] for row in part["farthest"]]
    assert distances == sorted(distances, reverse=True)
    first = part["farthest"][0]
    assert first["a"]["perplexity"] == first["b"]["perplexity"]
    assert first["a"]["error_rank"] != first["b"]["error_rank"]


def test_several_outputs_as_text_and_as_a_chart(outputs: FinishedOutputs, others: list[str], tmp_path: Path) -> None:
    """The matrix, what is not paired, and the lines that moved."""
    text = compare(outputs.pruned.root, *others, "--plot", tmp_path / "moves.html")
    assert f"{NUM_SAMPLES} samples paired ({NUM_SAMPLES} by file and line); none is left" in text
    assert f"{NUM_SAMPLES - 5} samples paired ({NUM_SAMPLES - 5} by content); 5 only in {outputs.pruned.root}" in text
    assert "rank correlation: perplexity 1.000, entropy 1.000" in text
    assert "moved most" in text
    assert "quadrant in" in (tmp_path / "moves.html").read_text()
    compare(outputs.pruned.root, others[0], "--plot", tmp_path / "moves.png")
    assert (tmp_path / "moves.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_use_of_several_outputs(outputs: FinishedOutputs, others: list[str]) -> None:
    """Flags of strategies, and an output without quadrants."""
    assert "--by belongs to the comparison of strategies" in compare(
        outputs.pruned.root, others[0], "--by", "category", code=2
    )
    assert "holds scores only" in compare(outputs.pruned.root, outputs.scored.root, code=2)
