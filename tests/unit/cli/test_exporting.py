"""`qtune export` as typed: what it prints, and how it fails."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from qtune_service.cli import app
from qtune_service.output.reader import FinishedOutput
from tests.finished_outputs import chats, finished_output


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Return an output of a few conversations."""
    return finished_output(tmp_path_factory.mktemp("small"), chats(12), prune_by={"sample_keep_ratio": 0.5})


def test_it_says_what_was_written_and_how_to_load_it(small: FinishedOutput, tmp_path: Path) -> None:
    """Rows, files, notes, and lines to paste."""
    done = CliRunner().invoke(app, ["export", small.root, "--to", "ms-swift", str(tmp_path / "[x]")])
    assert done.exit_code == 0, done.output
    assert f"{small.manifest['counts']['kept']} rows" in done.stdout
    assert "masks of single tokens" in done.stdout
    assert f"--dataset {tmp_path}/[x]/*.jsonl" in done.stdout, "a folder's name is no markup"


def test_errors_end_with_the_exit_code_of_their_kind(small: FinishedOutput, tmp_path: Path) -> None:
    """2 for usage, 3 for data; on standard error, with what to do."""
    again = ["export", small.root, "--to", "trl", str(tmp_path)]
    assert CliRunner().invoke(app, again).exit_code == 0
    refused = CliRunner().invoke(app, again)
    assert (refused.exit_code, "--overwrite" in refused.stderr) == (2, True)
    assert CliRunner().invoke(app, [*again, "--overwrite"]).exit_code == 0
    packed = ["export", small.root, "--to", "megatron-bridge", str(tmp_path / "p"), "--pack-length", "16"]
    refused = CliRunner().invoke(app, packed)
    assert (refused.exit_code, "do not fit into rows of 16" in refused.stderr) == (3, True)


def test_an_unknown_reader_is_met_with_the_known_ones(small: FinishedOutput, tmp_path: Path) -> None:
    """All names are in the message."""
    refused = CliRunner().invoke(app, ["export", small.root, "--to", "nobody", str(tmp_path)])
    assert refused.exit_code == 2
    assert "llama-factory" in refused.stderr
