"""The server's process stays small: what it does not need at once is not imported at once."""

from __future__ import annotations

import subprocess
import sys

import pytest

LATER = {
    "altair": "draws pictures",
    "alembic": "changes schemas",
    "boto3": "is for tests",
    "botocore": "is for tests",
    "duckdb": "answers questions to outputs",
    "fsspec": "reaches other stores",
    "pandas": "is nobody's",
    "polars": "is nobody's",
    "psycopg": "speaks with PostgreSQL, where there is one",
    "pyarrow.dataset": "is not used",
    "ray": "runs jobs",
    "rich": "is for terminals",
    "tokenizers": "is for previews",
    "torch": "runs jobs",
    "transformers": "runs jobs",
    "typer": "is for terminals",
    "vl_convert": "draws pictures",
    "vllm": "runs jobs",
}
"""What each module is for, that the application alone does not load."""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    """Modules of a fresh process that has imported the application."""
    code = "import qtune_service.server.app, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize("module", LATER)
def test_the_application_does_not_import(loaded: set[str], module: str) -> None:
    """Imports that cost memory and time are made by who needs them."""
    assert "qtune_service.server.app" in loaded
    assert module not in loaded, f"{module} {LATER[module]}; import it where that is done"
