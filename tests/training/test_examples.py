"""The examples run as their first lines say, and the arguments are the ones that users know."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

import pytest

from qtune_service.training import QTuningArguments, add_q_tuning_arguments, q_tuning_arguments
from tests.jobs import REPO, environment

FOLDER = REPO / "examples" / "training"


def run(*command: str) -> str:
    """Run a program that must succeed and return its output."""
    variables = environment({"PYTHONPATH": str(REPO)})
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=variables, timeout=500, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["loop", "trainer", "sft"])
def test_an_example_prunes_three_steps(name: str) -> None:
    """A quarter of each step's 64 rows is kept, give or take those that tie."""
    if name == "sft":
        pytest.importorskip("trl", reason="needs trl, one of the dev extras")
    said = run(str(FOLDER / f"{name}.py"), "--enable-q-tuning", "--q-tuning-sample-keep-ratio", "0.25")
    kept = re.findall(r"\[Q-Tuning\] Kept (\d+)/64 samples", said)
    assert len(kept) == 3
    assert all(16 <= int(number) <= 19 for number in kept)


def test_two_processes_prune_as_one() -> None:
    """Under Accelerate: half as many rows a batch on two processes keep the same rows and tokens of each step."""
    example = str(FOLDER / "accelerate_loop.py")
    one = run(example, "--enable-q-tuning", "--batch-size", "16")
    two = run("-m", "torch.distributed.run", "--nproc-per-node", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint",
              "127.0.0.1:0", example, "--enable-q-tuning", "--batch-size", "8")  # fmt: skip
    pattern = re.compile(r"^step \d+: \d+ tokens of \d+ rows$", re.MULTILINE)
    assert len(pattern.findall(one)) == 4
    assert pattern.findall(two) == pattern.findall(one)


def test_arguments_have_the_names_and_defaults_that_users_know() -> None:
    """Exactly these six flags."""
    parser = add_q_tuning_arguments(argparse.ArgumentParser(add_help=False))
    flags = {option: action.default for action in parser._actions for option in action.option_strings}
    assert flags == {
        "--enable-q-tuning": False,
        "--q-tuning-sample-keep-ratio": 0.5,
        "--q-tuning-token-keep-ratio": 0.7,
        "--q-tuning-neighbor-lambda": 0.5,
        "--q-tuning-bisect-max-iter": 10,
        "--q-tuning-keep-end-of-turn": True,
        "--no-q-tuning-keep-end-of-turn": True,
    }


def test_arguments_say_whether_and_how_to_prune() -> None:
    """Nothing without the flag; with it what was given, and defaults."""
    parser = add_q_tuning_arguments(argparse.ArgumentParser())
    assert q_tuning_arguments(parser.parse_args([])) is None
    given = parser.parse_args(["--enable-q-tuning", "--q-tuning-neighbor-lambda", "0.25"])
    assert q_tuning_arguments(given) == QTuningArguments(neighbor_lambda=0.25)
