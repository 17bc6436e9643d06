"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.finished_outputs import FinishedOutputs

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real datasets, golden cases and a tiny real model, beside the checkout; skips where it is absent."""
    path = REPO.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (golden cases, datasets, a tiny model) beside the checkout")
    return path


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutputs:
    """A finished output of 120 samples in five shards, scored only and pruned. Tests leave it as it is."""
    from tests.finished_outputs import make_outputs

    return make_outputs(tmp_path_factory.mktemp("outputs"))
