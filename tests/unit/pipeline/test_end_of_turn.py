"""`keep_end_of_turn` in jobs: masks, manifest, warnings, readers, and outputs that are pruned again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qtune_service.cli.main import app
from qtune_service.cli.prune import _spec_from_scores
from qtune_service.output.reader import FinishedOutput, read_samples
from qtune_service.spec_files import pruned_again
from tests.finished_outputs import chats, finished_output
from tests.jobs import check_output, manifest, rows

SETTINGS = {"sample_keep_ratio": 0.5, "token_keep_ratio": 0.3}


def ends(row: dict[str, Any], mask: list[int], stops: set[int]) -> list[int]:
    """Return the positions of a row whose end-of-turn tokens are trained, by a plain loop."""
    size = len(mask)
    last = [i for i in range(1, size) if mask[i] and (i + 1 == size or not mask[i + 1])]
    return sorted({*last, *(i for i in range(1, size) if mask[i] and row["input_ids"][i] in stops)})


def lost(out: Path) -> int:
    """Return the number of kept Q2 samples whose final mask lacks an end-of-turn token."""
    stops = set(manifest(out)["scoring"]["stop_token_ids"])
    before = {row["sample_id"]: row for row in rows(out / "scores")}
    kept = [row for row in rows(out / "pruned") if row["qtune"]["quadrant"] == "Q2"]
    assert kept
    return sum(
        any(not row["loss_mask"][i] for i in ends(row, before[row["qtune"]["sample_id"]]["loss_mask"], stops))
        for row in kept
    )


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Return the outputs of the same chats with the setting and without."""
    folder = tmp_path_factory.mktemp("ends")
    for keep in (True, False):
        (folder / str(keep)).mkdir()
        finished_output(folder / str(keep), chats(120), prune_by={**SETTINGS, "keep_end_of_turn": keep})
    return {keep: folder / str(keep) / "out" for keep in (True, False)}


def test_no_sample_loses_the_end_of_a_turn(outputs: dict[bool, Path]) -> None:
    """The manifest names the stop tokens, of the model and of the template."""
    out = outputs[True]
    assert manifest(out)["scoring"]["stop_token_ids"]
    assert lost(out) == 0
    assert not any("end-of-turn" in warning for warning in manifest(out)["warnings"])


def test_the_share_that_loses_it_is_told(outputs: dict[bool, Path]) -> None:
    """Without the setting, as in the paper."""
    out = outputs[False]
    number = lost(out)
    assert number > 0
    (warning,) = [text for text in manifest(out)["warnings"] if "end-of-turn" in text]
    assert f"{number} of {manifest(out)['counts']['Q2']} Q2 samples" in warning
    assert warning in (out / "report.html").read_text()
    summary = json.loads((out / "summary_statistics.json").read_text())
    assert summary["stage2"]["samples_without_end_of_turn"] == number


@pytest.mark.parametrize("keep", [True, False])
def test_readers_and_the_curve_see_the_same_masks(keep: bool, outputs: dict[bool, Path]) -> None:
    """Samples are shown with the masks of pruned/, and the what-if curve counts their tokens."""
    out = outputs[keep]
    finished = FinishedOutput(str(out))
    pruned = {row["qtune"]["sample_id"]: row["loss_mask"] for row in rows(out / "pruned")}
    shown = [
        sample for shard in finished.shards for sample in read_samples(finished, shard, range(finished.shards[shard]))
    ]
    for sample in shown:
        if sample.kept:
            assert sample.tokens.final_mask.tolist() == pruned[sample.sample_id]
    curve = json.loads((out / "plane.json").read_text())["what_if"]
    assert curve["points"]["tokens"][curve["here"]] == manifest(out)["tokens"]["after"]


@pytest.mark.parametrize("keep", [True, False])
def test_the_independent_check_agrees(keep: bool, outputs: dict[bool, Path], shared_dir: Path) -> None:
    """tools/check_output.py knows the setting."""
    assert check_output(shared_dir, outputs[keep]).endswith("\n0 checks failed\n")


def test_an_output_without_the_setting_stays_without_it(outputs: dict[bool, Path], tmp_path: Path) -> None:
    """Outputs of earlier versions have no such field. Pruned again they keep what they did, unless told otherwise."""
    earlier = tmp_path / "earlier"
    shutil.copytree(outputs[False], earlier)
    body = manifest(earlier)
    del body["spec"]["prune"]["keep_end_of_turn"], body["scoring"]["stop_token_ids"]
    (earlier / "manifest.json").write_text(json.dumps(body))
    assert FinishedOutput(str(earlier)).prune.keep_end_of_turn is False
    again = CliRunner().invoke(app, ["prune", "--from-scores", str(earlier), "-o", str(tmp_path / "again")])
    assert again.exit_code == 0, again.output
    assert "keep_end_of_turn false" in again.stderr
    assert "token_keep_ratio 0.3" in again.stderr
    assert manifest(tmp_path / "again")["spec"]["prune"]["keep_end_of_turn"] is False
    other = _spec_from_scores(
        {"from_scores": str(earlier), "output.path": str(tmp_path / "o"), "prune.keep_end_of_turn": True}
    )
    assert other.prune is not None
    assert (other.prune.keep_end_of_turn, other.prune.token_keep_ratio) == (True, 0.3)


def test_a_rule_does_not_follow_into_another_strategy() -> None:
    """A rule labels the method's quadrants, so a strategy that is given replaces it. Other settings stay."""
    earlier = {"prune": {"quadrant_rule": "mine:rule", "token_keep_ratio": 0.3}}
    assert pruned_again(earlier, {"strategy": "random"}) == {"strategy": "random", "token_keep_ratio": 0.3}
    assert pruned_again(earlier, {"seed": 1}) == {**earlier["prune"], "seed": 1}
    assert pruned_again({"prune": None}, {"seed": 1}) == {"seed": 1}
