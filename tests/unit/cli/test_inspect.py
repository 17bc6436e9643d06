"""`qtune inspect`: what it answers to people and to scripts, and to questions that cannot be answered."""

from __future__ import annotations

import inspect as python_inspect
import json
import re
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from qtune_service.cli import app, inspect
from tests.finished_outputs import NUM_SAMPLES, FinishedOutputs
from tests.jobs import REPO

HELP = REPO / "docs" / "guides" / "inspect.md"


def ask(output: str, *flags: object, env: dict[str, str] | None = None) -> Result:
    """Run the command in this process; its output is a file to it."""
    return CliRunner().invoke(app, ["inspect", output, *map(str, flags)], env={"NO_COLOR": None, **(env or {})})


def lines(output: str, *flags: object) -> list[Any]:
    """Return the lines of an answer in JSON."""
    done = ask(output, *flags, "--json")
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_without_a_question(outputs: FinishedOutputs) -> None:
    """The manifest, for people and for scripts."""
    done = ask(outputs.pruned.root)
    assert "valuable misconception" in done.stdout
    assert "report.html" in done.stdout
    done = ask(outputs.pruned.root, "--json")
    assert json.loads(done.stdout) == outputs.pruned.manifest


def test_a_selection(outputs: FinishedOutputs) -> None:
    """Quadrant, order and limit; the heading counts all that match, the sort key is shown."""
    done = ask(outputs.pruned.root, "--quadrant", "Q2", "--sort", "borderline", "--limit", 3)
    num_matching = outputs.pruned.manifest["counts"]["Q2"]
    assert done.stdout.startswith(f"{num_matching} samples match; 3 shown, by borderline, lowest first\n")
    assert len(re.findall(r"Q2 kept  perplexity .* tokens.*  borderline \S+\n", done.stdout)) == 3
    assert done.stdout.endswith("prompt  {+trained on+}  [-removed-]\n")


def test_a_selection_for_scripts(outputs: FinishedOutputs) -> None:
    """One object a line, in order, with own columns and tokens; 0 is no limit."""
    found = lines(outputs.pruned.root, "--sort", "-perplexity", "--dropped", "--limit", 0)
    assert len(found) == outputs.pruned.manifest["counts"]["pruned"]
    assert [row["perplexity"] for row in found] == sorted((row["perplexity"] for row in found), reverse=True)
    first = found[0]
    assert first["kept"] is False
    assert first["own"]["messages"][-1]["content"] in "".join(token["text"] for token in first["tokens"])
    trained = [token for token in first["tokens"] if token["state"] != "prompt"]
    assert len(trained) == first["num_tokens"] == first["tokens_removed"]
    assert len(lines(outputs.pruned.root, "--kept")) == 5


def test_conditions_and_columns(outputs: FinishedOutputs) -> None:
    """A condition on own and scored columns, answered as a table or as objects of these columns."""
    flags = ("--where", "category = 'creature' and num_tokens < 8", "--columns", "id, perplexity,length")
    found = lines(outputs.pruned.root, *flags)
    assert found
    assert all(list(row) == ["id", "perplexity", "length"] and row["length"] < 8 for row in found)
    shown = ask(outputs.pruned.root, *flags).stdout
    assert all(row["id"] in shown for row in found)
    assert "[-" not in shown, "no tokens"


def test_one_sample(outputs: FinishedOutputs) -> None:
    """By its id, from either kind of output."""
    shown = ask(outputs.pruned.root, "--sample", "0000-00000007").stdout
    assert shown.startswith("0000-00000007  Q")
    assert "perplexity rank" in shown
    (found,) = lines(outputs.scored.root, "--sample", "0000-00000007")
    assert (found["line"], "quadrant" in found) == (7, False)


def test_an_id_that_is_not_there(outputs: FinishedOutputs) -> None:
    """The nearest ids; of a rejected record, that it was rejected and how to see why."""
    done = ask(outputs.pruned.root, "--sample", "0000-7")
    assert done.exit_code == 2
    assert "the nearest are 0000-00000007" in done.stderr
    done = ask(outputs.pruned.root, "--sample", f"0000-{NUM_SAMPLES + 3:08}")
    assert "was rejected" in done.stderr
    hint = re.search(r"--where \"(.*)\"", done.stderr)
    assert hint is not None
    (found,) = lines(outputs.pruned.root, "--rejected", "--where", hint[1])
    assert (found["reason"], found["line"]) == ("bad_json", NUM_SAMPLES + 3)


def test_rejected_records(outputs: FinishedOutputs) -> None:
    """Source, line, reason and beginning of each."""
    shown = ask(outputs.pruned.root, "--rejected").stdout
    assert shown.startswith("3 rejected records\n")
    assert re.search(rf"data\.jsonl:{NUM_SAMPLES + 1}  no_assistant_turn\n  .*\n  {{\"id\": \"silent\"", shown)


def test_groups(outputs: FinishedOutputs) -> None:
    """Any column; what a limit leaves out is said."""
    groups = lines(outputs.pruned.root, "--by", "category", "--limit", 0)
    assert sum(group["num_samples"] for group in groups) == NUM_SAMPLES
    shown = ask(outputs.pruned.root, "--by", "category", "--limit", 2).stdout
    assert f"… and {len(groups) - 2} more" in shown
    assert "Q4" not in ask(outputs.scored.root, "--by", "planted").stdout


def test_columns_are_listed(outputs: FinishedOutputs) -> None:
    """Those of the samples, or of the rejected records."""
    names = [row["column"] for row in lines(outputs.pruned.root, "--list-columns")]
    assert {"borderline", "planted", "original_Entropy"} <= set(names)
    assert "reason" in [row["column"] for row in lines(outputs.pruned.root, "--rejected", "--list-columns")]


@pytest.mark.parametrize(
    ("env", "is_coloured"), [({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False), ({}, False)]
)
def test_colour_or_signs(env: dict[str, str], is_coloured: bool, outputs: FinishedOutputs) -> None:
    """Colour on a terminal, signs in a file and under NO_COLOR: tokens are told apart in each."""
    shown = ask(outputs.pruned.root, "--quadrant", "Q2", "--sort", "-length", env=env).stdout
    assert ("\x1b[9;31m" in shown) == is_coloured
    assert ("[-" in shown) != is_coloured


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--where", ""), "the condition is empty"),
        (("--where", "perplexty > 1"), "did you mean perplexity?"),
        (("--where", "1=1) union select 1 from (select 1"), "must be one expression"),
        (("--where", "exists(from read_csv('/etc/passwd'))"), "a subquery is not supported"),
        (("--sort", "nothing"), "there is no column 'nothing'"),
        (("--columns", "id,nothing"), "there is no column 'nothing'"),
        (("--by", "nothing"), "there is no column 'nothing'"),
        (("--sample", "x", "--kept"), "--sample cannot be combined with --kept"),
        (("--rejected", "--quadrant", "Q1"), "--rejected cannot be combined with --quadrant"),
        (("--by", "category", "--sort", "length"), "--by cannot be combined with --sort"),
        (("--list-columns", "--dropped"), "--list-columns cannot be combined with --kept"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered(flags: tuple[str, ...], message: str, outputs: FinishedOutputs) -> None:
    """A message that says what is wrong, on the error stream, and exit code 2."""
    done = ask(outputs.pruned.root, *flags)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not done.stdout


def test_not_an_output(tmp_path: Any) -> None:
    """A question to what is no finished output is refused as before."""
    done = ask(str(tmp_path), "--kept")
    assert done.exit_code == 2
    assert "is not an output of qtune" in done.stderr


def test_every_flag_is_documented() -> None:
    """The inspect guide names each flag of the command, and no others."""
    flags = {f"--{name.replace('_', '-')}" for name in python_inspect.signature(inspect.inspect).parameters}
    flags = flags - {"--output", "--as-json"} | {"--json", "--dropped"}
    assert set(re.findall(r"qtune inspect.*?(?=\n)", HELP.read_text())), "there are examples"
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", HELP.read_text())) - {"--samples"} == flags
