"""What the terminal shows: a job, its samples with their tokens, with colour and without."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console, RenderableType

from qtune_service.output.query import Group, Selection, find, samples_of
from qtune_service.output.reader import FinishedOutput
from qtune_service.report.data import TokenView
from qtune_service.report.terminal import HEIGHT, SAMPLE, bar, describe_job, draw_plane
from qtune_service.report.terminal_samples import (
    Cut,
    fields_table,
    groups_table,
    legend,
    rejected_card,
    rows_table,
    sample_card,
    sample_page,
    token_text,
)
from qtune_service.report.token_view import ShownSample, plain, shown_samples
from tests.finished_outputs import FinishedOutputs

ALL = Cut()
TOKENS = (
    TokenView("Q?\n", "prompt"),
    TokenView("It", "kept", 0.5, 0.5, 1.6),
    TokenView(" is", "kept", 0.5, 0.5, 1.6),
    TokenView(" grey", "removed", 4.0, 0.5, 54.0),
    TokenView("\n", "removed", 3.0, 0.5, 20.0),
    TokenView("<end>", "kept", 0.1, 0.1, 1.1),
    TokenView("\n", "prompt"),
)


def printed(part: RenderableType, width: int = 100, *, color: bool = False) -> str:
    """Return the text that a terminal of this width, or a file, gets."""
    file = io.StringIO()
    system: Any = "standard" if color else None
    Console(file=file, width=width, color_system=system, force_terminal=color, legacy_windows=False).print(
        part, highlight=False, soft_wrap=not color
    )
    return file.getvalue()


def test_tokens_without_colour() -> None:
    """Runs of tokens stand between signs, removed line ends are seen, and what trails is cut off."""
    assert printed(token_text(TOKENS, signs=True, cut=ALL)) == "  Q?\n  {+It is+}[- grey⏎\n  -]{+<end>+}\n"
    assert printed(legend(signs=True)) == "prompt  {+trained on+}  [-removed-]\n"


def test_tokens_in_colour() -> None:
    """Prompt is dim, what is trained on green, what was removed red and struck; no signs."""
    shown = printed(token_text(TOKENS, signs=False, cut=ALL), color=True)
    assert "\x1b[32mIt is\x1b[0m" in shown
    assert "\x1b[9;31m grey⏎\x1b[0m" in shown
    assert "\x1b[2mQ?\x1b[0m" in shown
    assert "{+" not in shown


def test_long_samples_are_cut() -> None:
    """A list shows the ends of a prompt and the first tokens, and says how many more there are."""
    tokens = [TokenView("ab" * 500, "prompt"), *(TokenView(f" {i}", "kept", 1.0, 1.0) for i in range(20))]
    shown = printed(token_text(tokens, signs=True, cut=Cut(prompt_chars=40, trained_tokens=3)))
    assert shown == f"  {'ab' * 5} … {'ab' * 15}{{+ 0 1 2+}} … 17 more trained tokens\n"


def test_data_cannot_steer_the_terminal() -> None:
    """Control codes and orders to turn text round are shown as signs, wherever they come from."""
    evil = "\x1b[2J\x07\u202e"
    sample = ShownSample(
        {"sample_id": "0", "source": f"d{evil}", "line": 1, "perplexity": 1.0, "mean_entropy": 1.0, "num_tokens": 1}
        | {"truncated": False},
        {"own": evil},
        (TokenView(evil, "prompt"), TokenView(evil, "kept", 1.0, 1.0)),
        {"note": evil},
    )
    group = Group(evil, 1, {}, None, 1, 1.0, 1.0)
    rejected = {"source": evil, "line": None, "reason": "bad_json", "detail": evil, "record": evil}
    parts: list[RenderableType] = [sample_card(sample, signs=True), groups_table("c", [group]), rejected_card(rejected)]
    parts += [rows_table([{evil: evil}], [evil])]
    for part in parts:
        shown = printed(part)
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
        assert "␛[2J" in shown


@pytest.mark.parametrize("signs", [True, False])
def test_sample_page(signs: bool, outputs: FinishedOutputs) -> None:
    """Everything about a sample: fate, place on the plane, own columns, tokens, the hardest of them."""
    records = samples_of(outputs.pruned)
    found = find(records, Selection(quadrant="Q2", where="meta->>'a' IS NOT NULL", sort="-perplexity", limit=1))
    (sample,) = shown_samples(outputs.pruned, records, found.index)
    shown = printed(sample_page(sample, outputs.pruned, signs=signs))
    assert f"Q2 kept  perplexity {sample.fields['perplexity']:.4g}" in shown
    assert SAMPLE in shown
    assert "It is kept if alpha is at least" in shown
    assert f'meta      {{"a": {sample.fields["index"]}}}' in shown
    assert sample.own["messages"][0]["content"] in shown
    hardest = max(sample.tokens, key=lambda token: token.nll or 0.0)
    assert shown.index("Hardest tokens") < shown.rindex(repr(hardest.text))
    assert sample.tokens_removed == sum(token.state == "removed" for token in sample.tokens) > 0
    assert ("[-" in shown) == signs


def test_dropped_samples_train_on_nothing(outputs: FinishedOutputs) -> None:
    """All trained tokens of a dropped sample are shown as removed."""
    records = samples_of(outputs.pruned)
    found = find(records, Selection(quadrant="Q3", limit=3))
    for sample in shown_samples(outputs.pruned, records, found.index):
        assert {token.state for token in sample.tokens} == {"prompt", "removed"}
        assert "{+" not in printed(sample_card(sample, signs=True))


def test_samples_of_an_output_that_was_only_scored(outputs: FinishedOutputs) -> None:
    """They are shown without quadrant and plane, and nothing of them is removed."""
    records = samples_of(outputs.scored)
    (sample,) = shown_samples(outputs.scored, records, np.array([5]), ["typical"])
    shown = printed(sample_page(sample, outputs.scored, signs=True)) + printed(sample_card(sample, signs=True))
    assert "typical 0." in shown or "typical 1." in shown or "typical 2." in shown
    assert SAMPLE not in shown
    assert "dropped" not in shown
    assert sample.tokens_removed == 0


@pytest.mark.parametrize(
    ("p", "e", "row", "column"), [(0.0, 1.0, 0, 0), (0.999, 0.001, HEIGHT - 1, 39), (0.5, 0.5, 6, 20)]
)
def test_place_on_the_plane(p: float, e: float, row: int, column: int) -> None:
    """The dot is where the ranks say; both corners are grey, the others blank."""
    lines = printed(draw_plane(p, e, 0.25)).splitlines()[2 : 2 + HEIGHT]
    plane = [line[3:43] for line in lines]
    assert plane[row][column] == SAMPLE
    assert plane[1][0] == plane[-2][-1] == "░"
    assert plane[1][-1] == plane[-2][0] == plane[HEIGHT // 2][5] == " "


@pytest.mark.parametrize(
    ("share", "text"), [(0, ""), (1e-9, "▏"), (0.5, "█████"), (0.56, "█████▋"), (1, "█" * 10), (7, "█" * 10)]
)
def test_bars(share: float, text: str) -> None:
    """To an eighth of a character; what is above nothing shows, what is above all does not run over."""
    assert bar(share, 10) == text


def test_job(outputs: FinishedOutputs) -> None:
    """Quadrants with bars, thresholds and rejects, on 80 columns."""
    shown = printed(describe_job(dict(outputs.pruned.manifest)), 80)
    counts = outputs.pruned.manifest["counts"]
    most = max(("Q1", "Q2", "Q3", "Q4"), key=lambda name: counts[name])
    (line,) = [line for line in shown.splitlines() if line.startswith(most)]
    assert "█" * 10 in line
    assert all(len(line) <= 80 for line in shown.splitlines() if line[:2] in counts)
    assert "no_assistant_turn" in shown
    assert "Samples by quadrant" not in printed(describe_job(dict(outputs.scored.manifest)), 80)


def test_job_of_another_strategy(weighed: FinishedOutput) -> None:
    """It says who chose; quadrants then have no fate."""
    text = printed(describe_job(dict(weighed.manifest)), 100)
    assert "chosen by" in text
    assert "infobatch" in text
    assert "kept whole" not in text


def test_tables(outputs: FinishedOutputs) -> None:
    """Groups have their quadrants; columns say where they are from and what they are called here."""
    group = Group("math", 8, {"Q1": 2, "Q2": 2, "Q3": 2, "Q4": 2}, 4, 80, 2.5, 0.5)
    shown = printed(groups_table("topic", [group]))
    assert "25%" in shown
    assert "██▌" in shown
    assert "kept" not in printed(groups_table("topic", [Group("math", 8, {}, None, 80, 2.5, 0.5)]))
    fields = printed(fields_table(samples_of(outputs.pruned)))
    assert "the records' own Entropy" in fields
    assert "change of alpha" in fields


def test_plain_data() -> None:
    """What JSON has no form for becomes text, at any depth."""
    value = {"a": [float("inf"), float("nan"), 1.5], 3: (None, True, np.array([1]).tolist()), "b": b"x"}
    assert plain(value) == {"a": ["inf", "nan", 1.5], "3": [None, True, [1]], "b": "b'x'"}
