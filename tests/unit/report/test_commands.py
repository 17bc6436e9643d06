"""Tests of the commands that a reader copies."""

from __future__ import annotations

import shlex
from dataclasses import replace

from typer.testing import CliRunner

from qtune_service.cli import app
from qtune_service.config import PruneSpec
from qtune_service.report.plane_file import inspect_command, prune_command
from tests.report_data import made_up_report


def test_another_ratio_is_one_command_away() -> None:
    """From this output, into one beside it, at the ratio."""
    assert prune_command(made_up_report(output="s3://b/out/"), 0.25) == (
        "qtune prune --from-scores s3://b/out/ --output s3://b/out-0.25 --sample-keep-ratio 0.25"
    )
    assert prune_command(made_up_report(output=""), 1.0).startswith("qtune prune --from-scores OUT --output OUT-1 ")


def test_arguments_of_the_job_that_are_not_the_defaults_are_repeated() -> None:
    """Else the new output would differ in more than its ratio."""
    data = made_up_report()
    spec = PruneSpec(sample_keep_ratio=0.5, token_keep_ratio=0.6, min_tokens_to_prune=16).model_dump(mode="json")
    command = prune_command(replace(data, spec={"prune": spec}), 0.25)
    assert command.endswith(" --sample-keep-ratio 0.25 --token-keep-ratio 0.6 --min-tokens-to-prune 16")


def test_every_argument_is_a_flag_that_the_command_has() -> None:
    """Names are made from the spec's."""
    shown = CliRunner().invoke(app, ["prune", "--help"], env={"COLUMNS": "200"}).output
    for name in PruneSpec.model_fields:
        assert f"--{name.replace('_', '-')}" in shown


def test_paths_survive_the_shell() -> None:
    """Spaces and quotes are one word each."""
    data = made_up_report(output="my 'out' $HOME")
    assert shlex.split(prune_command(data, 0.5))[3:6] == ["my 'out' $HOME", "--output", "my 'out' $HOME-0.5"]
    assert shlex.split(inspect_command(data) + "x") == ["qtune", "inspect", "my 'out' $HOME", "--sample", "x"]
