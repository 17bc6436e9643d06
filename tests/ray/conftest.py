"""Jobs that nothing disturbed, to compare with. Each runs once for all worker processes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from tests.jobs import demo_job, qtune
from tests.once import once_per_run


def _run(folder: Path, *, engine: str) -> None:
    done = qtune(*demo_job(folder / "out", "--engine", engine))
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of the demo job by the reference engine."""
    return once_per_run(tmp_path_factory, "undisturbed", partial(_run, engine="reference")) / "out"


@pytest.fixture(scope="session")
def undisturbed_vllm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the output of the demo job by vLLM."""
    return once_per_run(tmp_path_factory, "undisturbed-vllm", partial(_run, engine="vllm")) / "out"
