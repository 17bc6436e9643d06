"""Jobs that nothing disturbed, to compare with; each is run once a session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.jobs import demo_job, qtune


def _run(folder: Path, engine: str) -> Path:
    done = qtune(*demo_job(folder / "out", "--engine", engine))
    assert done.returncode == 0, done.stderr
    return folder / "out"


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo job through the reference engine."""
    return _run(tmp_path_factory.mktemp("undisturbed"), "reference")


@pytest.fixture(scope="session")
def undisturbed_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo job through vLLM."""
    return _run(tmp_path_factory.mktemp("undisturbed_vllm"), "vllm")
