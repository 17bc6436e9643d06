"""Wrong flags: exit code 2 and a message that names flags, never fields of a job file; nothing is run."""

from __future__ import annotations

import json
import re

import pytest
from typer.testing import CliRunner

from qtune_service.cli import app

JOB = ("--model", "m", "-o", "out")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prune", "d", *JOB, "--limit", "0"), "'--limit': Input should be greater than or equal to 1"),
        (("prune", "d", *JOB, "--limit", "x"), "'--limit': Input should be a valid integer"),
        (("prune", "d", *JOB, "--seed", "-1"), "'--seed': Input should be greater than or equal to 0"),
        (("prune", "d", *JOB, "--format", "csv"), "'csv' is not one of 'auto', 'messages'"),
        (("prune", "d", *JOB, "--strategy", "best"), "'best' is not one of 'q_tuning', 'random'"),
        (("prune", "d", *JOB, "--sample-keep-ratio", "2"), "'--sample-keep-ratio': Input should be less than or equal"),
        (("prune", "d", *JOB, "--sample-keep-ratio", "nan"), "Input should be a finite number"),
        (("prune", "d", *JOB, "--num-actors", "many"), "expected a number or MIN-MAX, got 'many'"),
        (("prune", "d", *JOB, "--engine", "my_engine"), "expected auto|vllm|reference|MODULE:FACTORY"),
        (("prune", "d", *JOB, "--modle", "m"), "Possible options: --max-model-len, --model"),
        (("prune", "d", *JOB, "--num-actors", "4-2"), "error: --num-actors: MIN must be at most MAX"),
        (("prune", "d", *JOB, "--take", "a"), "error: --take needs CATEGORY=N, got 'a'"),
        (("prune", "d", *JOB, "--take", "a=1"), "error: --take needs --category-field"),
        (("prune", "d", *JOB, "--prompt-column", "q"), "error: --prompt-column and --completion-column must be given"),
        (("prune", "d", *JOB, "--quadrant-rule", "a:b", "--strategy", "random"), "--quadrant-rule requires --strategy"),
        (("prune", *["d"] * 100_001, *JOB), "DATA: 100,001 paths, at most 100,000 are allowed"),
        (("prune", *JOB), "error: no data given"),
        (("prune", "d", "-o", "out"), "error: no model given"),
        (("prune", "d", "--model", "m"), "Missing option '--output' / '-o'"),
        (("prune", "--from-scores", "a", "d", "-o", "out"), "--from-scores takes the data and the model from"),
        (("score", "d", "-o", "out"), "Missing option '--model'"),
        (("score", *JOB), "Missing argument"),
        (("score", "d", *JOB, "--sample-keep-ratio", "0.5"), "No such option: --sample-keep-ratio"),
        (("run", "env:QTUNE_NONE"), "there is no environment variable 'QTUNE_NONE'"),
        (("preview", "d"), "error: no model given"),
        (("preview", "d", "--model", "m", "--limit", "51"), "'--limit': Input should be less than or equal to 50"),
        (("estimate", "d"), "error: no model given"),
        (("estimate",), "neither data nor numbers given"),
        (("jobs", "submit", "--sample-keep-ratio", "0"), "'--sample-keep-ratio': Input should be greater than 0"),
    ],
)
def test_a_wrong_flag_is_named(words: tuple[str, ...], message: str) -> None:
    """Text and exit code are those that people and scripts know."""
    done = CliRunner().invoke(app, words, env={"COLUMNS": "80"})
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", done.stderr).split())
    assert (done.exit_code, message in text) == (2, True), done.stderr
    assert not re.search(r"\b(?:input|prune|engine|limits)\.[a-z]|Value error", text)


def test_errors_of_a_preview_are_json_too() -> None:
    """With --json, what several flags have wrong together is in the object."""
    done = CliRunner().invoke(app, ["preview", "d", "--model", "m", "--take", "a=1", "--json"])
    assert done.exit_code == 2
    assert json.loads(done.stdout)["error"] == {"code": "spec", "message": "--take needs --category-field", "hint": ""}
