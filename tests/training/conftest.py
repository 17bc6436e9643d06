"""Fixtures of the training loop's tests."""

from __future__ import annotations

from typing import Any

import pytest

from tests.training.models import tiny_llama


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a random Llama in training mode. Tests leave its weights as they are."""
    return tiny_llama().train()
