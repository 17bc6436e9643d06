"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real datasets, golden cases and a tiny real model, beside the checkout; skips where it is absent."""
    path = REPO.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (golden cases, datasets, a tiny model) beside the checkout")
    return path
