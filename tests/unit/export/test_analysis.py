"""Analysis files: what each holds, and that jq and a JSON parser of the strict kind read them."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from qtune_service.errors import SpecError
from qtune_service.export.run import export
from qtune_service.export.writers import Options
from qtune_service.output.reader import FinishedOutput
from tests.finished_outputs import chats, finished_output
from tests.jobs import rows

Sample = dict[str, Any]
JQ = '.[] | select(.metadata.quadrant == "Q2") | {id, ppl: .metadata.ppl, removed: .metadata.tokens_removed}'


def strict(path: Path) -> Any:
    """Parse JSON; NaN and infinities, which are none, fail."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


@pytest.fixture(scope="module")
def analysis(finished: FinishedOutput, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the six files."""
    folder = tmp_path_factory.mktemp("analysis")
    export(finished.root, "analysis", str(folder), Options())
    return folder


def test_there_are_six_files(analysis: Path) -> None:
    """By the names that other tools know."""
    assert sorted(path.name for path in analysis.iterdir()) == [
        "stage1_kept.json",
        "stage1_removed.json",
        "stage2_final.json",
        "stage2_pruned_tokens_visualization.json",
        "summary_statistics.json",
        "token_pruning_visualization.html",
    ]


def test_the_documented_jq_line_works(analysis: Path, out: Path) -> None:
    """The real jq prints id, perplexity and removed tokens of every sample of Q2."""
    jq = shutil.which("jq")
    if jq is None:
        pytest.skip("needs the jq command")
    done = subprocess.run(
        [jq, "-c", JQ, str(analysis / "stage2_final.json")], capture_output=True, text=True, check=True
    )
    assert [json.loads(line) for line in done.stdout.splitlines()] == _q2(out)


def test_what_the_jq_line_selects_is_there(analysis: Path, out: Path) -> None:
    """The same in Python."""
    found = strict(analysis / "stage2_final.json")
    assert [
        {"id": sample["id"], "ppl": sample["metadata"]["ppl"], "removed": sample["metadata"]["tokens_removed"]}
        for sample in found
        if sample["metadata"]["quadrant"] == "Q2"
    ] == _q2(out)


def _q2(out: Path) -> list[Sample]:
    """Return the Q2 samples that a line describes, from pruned/."""
    return [
        {"id": row["id"], "ppl": row["qtune"]["perplexity"], "removed": row["qtune"]["tokens_removed"]}
        for row in rows(out / "pruned")
        if row["qtune"]["quadrant"] == "Q2"
    ]


def test_every_scored_sample_is_in_one_place(analysis: Path, finished: FinishedOutput) -> None:
    """Kept, or removed under its quadrant; the counts are those of the manifest and of the summary."""
    kept, removed = strict(analysis / "stage1_kept.json"), strict(analysis / "stage1_removed.json")
    assert list(removed) == ["Q1", "Q3"]
    assert all(s["metadata"]["quadrant"] == name for name, samples in removed.items() for s in samples)
    counts = Counter(s["metadata"]["quadrant"] for s in [*kept, *removed["Q1"], *removed["Q3"]])
    summary = strict(analysis / "summary_statistics.json")
    assert {f"{q}_count": counts[q] for q in ("Q1", "Q2", "Q3", "Q4")}.items() <= summary["stage1"].items()
    assert counts == Counter({q: finished.manifest["counts"][q] for q in ("Q1", "Q2", "Q3", "Q4")})
    ids = [s["id"] for s in [*kept, *removed["Q1"], *removed["Q3"]]]
    assert sorted(ids) == [chat["id"] for chat in chats(120)]


def test_samples_keep_their_own_fields(analysis: Path) -> None:
    """All of them, as they were read, in every file."""
    records = {chat["id"]: chat for chat in chats(120)}
    removed = strict(analysis / "stage1_removed.json")
    files = [strict(analysis / f"{name}.json") for name in ("stage1_kept", "stage2_final")]
    for sample in [*files[0], *files[1], *removed["Q1"], *removed["Q3"]]:
        assert {name: value for name, value in sample.items() if name != "metadata"} == records[sample["id"]]


def test_metadata_agrees_with_scores_and_masks(analysis: Path, out: Path) -> None:
    """Token lists are of the trained tokens; masks and counts are those of the product."""
    scores = {row["id"]: row for row in rows(out / "scores")}
    for sample, row in zip(strict(analysis / "stage2_final.json"), rows(out / "pruned"), strict=True):
        about, score = sample["metadata"], scores[sample["id"]]
        assert sample["id"] == row["id"]
        assert (about["ppl"], about["entropy"]) == (score["perplexity"], score["mean_entropy"])
        assert about["token_ppls"] == pytest.approx([math.exp(nll) for nll in score["nll"]], rel=1e-12)
        assert about["token_entropies"] == score["entropy"]
        final = [kept for kept, trained in zip(row["loss_mask"], score["loss_mask"], strict=True) if trained]
        if about["quadrant"] == "Q2":
            assert about["token_mask"] == final
            assert about["tokens_kept"] == sum(final) == row["qtune"]["tokens_kept"]
            assert about["tokens_removed"] == len(final) - sum(final) == row["qtune"]["tokens_removed"]
        else:
            assert (about["tokens_kept"], about["tokens_removed"]) == ("all", 0)
            assert "token_mask" not in about
    assert any(s["metadata"]["tokens_removed"] for s in strict(analysis / "stage2_final.json"))


def test_pruned_tokens_spell_the_sample(analysis: Path, finished: FinishedOutput) -> None:
    """Each sample of Q2 with its tokens: joined they are the rendered text, and their states are the mask."""
    decode = finished.decoder()
    ids = {row["id"]: row["input_ids"] for row in rows(Path(finished.root) / "scores")}
    samples = strict(analysis / "stage2_pruned_tokens_visualization.json")
    assert len(samples) == finished.manifest["counts"]["Q2"]
    for sample in samples:
        assert "".join(token["text"] for token in sample["tokens"]) == decode(ids[sample["id"]])
        states = [token["state"] for token in sample["tokens"] if token["state"] != "prompt"]
        assert states == ["kept" if kept else "removed" for kept in sample["metadata"]["token_mask"]]
        shown = [token["ppl"] for token in sample["tokens"] if "ppl" in token]
        assert shown == sample["metadata"]["token_ppls"]


def test_stage_2_adds_up(analysis: Path) -> None:
    """Tokens before and after in the summary are the sums over the samples."""
    samples = strict(analysis / "stage2_final.json")
    stage2 = strict(analysis / "summary_statistics.json")["stage2"]
    before = sum(len(s["metadata"]["token_ppls"]) for s in samples)
    after = before - sum(s["metadata"]["tokens_removed"] for s in samples)
    assert (stage2["total_tokens_before"], stage2["total_tokens_after"]) == (before, after)
    assert stage2["token_compression_ratio"] == after / before


def test_other_strategies_go_by_what_was_kept(weighed: FinishedOutput, tmp_path: Path) -> None:
    """Samples of any quadrant are kept and removed, and every kept one has a token mask."""
    export(weighed.root, "analysis", str(tmp_path), Options())
    kept, removed = strict(tmp_path / "stage1_kept.json"), strict(tmp_path / "stage1_removed.json")
    found = Counter(row["quadrant"] for row in rows(Path(weighed.root) / "quadrants") if not row["kept"])
    assert {name: len(samples) for name, samples in removed.items()} == dict(sorted(found.items()))
    assert len(kept) == weighed.manifest["counts"]["kept"]
    assert "Q1" in {s["metadata"]["quadrant"] for s in kept}, "the quadrant alone decides nothing"
    assert removed["Q4"]
    final = strict(tmp_path / "stage2_final.json")
    assert all(sum(s["metadata"]["token_mask"]) == s["metadata"]["tokens_kept"] for s in final)
    assert len(strict(tmp_path / "stage2_pruned_tokens_visualization.json")) == len(final)


def test_ids_and_fields_that_collide_are_sorted_out(tmp_path: Path) -> None:
    """A record without an id gets ours; fields that the file needs itself become `original_metadata`, ..."""
    records = [
        {"prompt": f"Say {i}!", "completion": f"{i}, of course.", "metadata": {"a": i}, "tokens": i}
        | ({"id": i} if i % 2 else {})
        for i in range(12)
    ]
    done = finished_output(tmp_path, records, prune_by={"sample_keep_ratio": 1.0})
    export(done.root, "analysis", str(tmp_path / "x"), Options())
    for i, sample in enumerate(strict(tmp_path / "x" / "stage2_final.json")):
        assert sample["id"] == (i if i % 2 else f"0000-{i + 1:08}")
        assert (sample["original_metadata"], sample["tokens"]) == ({"a": i}, i)
        assert sample["metadata"]["quadrant"].startswith("Q")
    for sample in strict(tmp_path / "x" / "stage2_pruned_tokens_visualization.json"):
        assert sample["tokens"][0]["state"] == "prompt"
        assert isinstance(sample["original_tokens"], int)


def test_nothing_removed_is_an_empty_object(tmp_path: Path) -> None:
    """Where another strategy keeps all, no quadrant lost a sample."""
    done = finished_output(tmp_path, chats(5), prune_by={"strategy": "random", "sample_keep_ratio": 1.0})
    export(done.root, "analysis", str(tmp_path / "x"), Options())
    assert strict(tmp_path / "x" / "stage1_removed.json") == {}
    assert len(strict(tmp_path / "x" / "stage1_kept.json")) == 5


def test_large_outputs_are_refused_unless_told_otherwise(finished: FinishedOutput, tmp_path: Path) -> None:
    """The files are for looking; the error names the way to look at many, and the flag."""
    with pytest.raises(SpecError, match="120 scored samples are more") as refusal:
        export(finished.root, "analysis", str(tmp_path), Options(max_samples=119))
    assert "--max-samples 120" in refusal.value.hint
    assert "qtune inspect" in refusal.value.hint
    assert list(tmp_path.iterdir()) == []
    export(finished.root, "analysis", str(tmp_path), Options(max_samples=120))
