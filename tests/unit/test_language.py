"""The check of the language of docstrings and docs (scripts/language.py) counts what it says it counts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "language.py"

GOOD = '''"""Count the rows of a table."""


def count(rows: int) -> int:
    """Return the number of rows."""
    return rows
'''


def measure(root: Path, *arguments: str) -> tuple[int, str]:
    """Run the check on a checkout and return its exit code and output."""
    command = [sys.executable, str(SCRIPT), "--root", str(root), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    return run.returncode, run.stdout


def listed(root: Path, figure: str) -> list[str]:
    """Return file:line of each offence of a figure."""
    return [line.split(": ")[0] for line in measure(root, "--list", figure)[1].splitlines()]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a checkout whose text keeps all limits."""
    (tmp_path / "qtune_service").mkdir()
    (tmp_path / "qtune_service" / "good.py").write_text(GOOD)
    (tmp_path / "README.md").write_text("# Rows\n\nThis program counts rows.\n")
    return tmp_path


def test_text_within_the_limits_passes(root: Path) -> None:
    code, text = measure(root)
    assert (code, "OVER THE LIMIT" in text) == (0, False)


@pytest.mark.parametrize(
    ("docstring", "figure"),
    [
        ("The number of rows.", "imperative"),
        ("Returns the number of rows.", "imperative"),
        ("Count of the rows.", "imperative"),
        ("`rows` is returned.", "imperative"),
        ("What the caller wants.", "fragments"),
        ("Whether there are rows.", "fragments"),
        ("Of both.", "fragments"),
        ("Where the rows are.", "fragments"),
        ("They are here.", "fragments"),
        ("The same, in files.", "fragments"),
        ("Arithmetic.", "fragments"),
    ],
)
def test_a_docstring_is_reported_and_fails_the_check(root: Path, docstring: str, figure: str) -> None:
    (root / "qtune_service" / "bad.py").write_text(f'def bad() -> None:\n    """{docstring}"""\n')
    assert listed(root, figure) == ["qtune_service/bad.py:2"]
    assert measure(root)[0] == 1
    assert measure(root, "--no-check")[0] == 0


@pytest.mark.parametrize(
    "docstring", ["Count rows.", "Close.", "Tokenise a text.", "Rewrite a file.", "Score a sample."]
)
def test_an_imperative_sentence_is_no_offence(root: Path, docstring: str) -> None:
    (root / "qtune_service" / "other.py").write_text(f'def other() -> None:\n    """{docstring}"""\n')
    assert (listed(root, "imperative"), listed(root, "fragments")) == ([], [])


@pytest.mark.parametrize("docstring", ["In warm-up, return all rows.", "Where a row is empty, skip it."])
def test_a_main_clause_after_a_condition_is_no_fragment(root: Path, docstring: str) -> None:
    (root / "qtune_service" / "other.py").write_text(f'def other() -> None:\n    """{docstring}"""\n')
    assert listed(root, "fragments") == []


@pytest.mark.parametrize(
    ("line", "figure"),
    [
        ("Users who have a token are whose rows these are.", "what-who"),
        ("The word lies beside the row.", "dialect"),
        ("Rows are counted; columns are not.", "semicolons"),
        (" ".join(["row"] * 41), "long-lines"),
    ],
)
def test_a_line_of_docs_is_reported(root: Path, line: str, figure: str) -> None:
    (root / "docs" / "guides").mkdir(parents=True)
    (root / "docs" / "guides" / "rows.md").write_text(f"# Rows\n{line}\n")
    assert listed(root, figure) == ["docs/guides/rows.md:2"]


def test_code_tables_changelog_and_generated_pages_are_left_out(root: Path) -> None:
    long = "x" * 200
    (root / "README.md").write_text(f"```\nwhat; {long}\n```\nCount `a; b`.\n\n| {long} |\n|---|\n")
    (root / "CHANGELOG.md").write_text(f"Who; {long}\n")
    (root / "docs").mkdir()
    (root / "docs" / "reference.md").write_text(f"# Fields\n\nWritten by `make docs`.\n\nWho; {long}\n")
    assert [listed(root, figure) for figure in ("what-who", "semicolons", "long-lines")] == [[], [], []]


def test_folders_have_rows_of_their_own(root: Path) -> None:
    _, text = measure(root, "--by-folder")
    assert {line.split()[0] for line in text.splitlines()[1:3]} == {"README.md", "qtune_service/good.py"}
