"""Tokenizers and encoders, one a chat template."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.tokenize.chat_models import SHAPES, Encoders, make_encoder, save_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tokenizer without a template."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoders(folder: Path) -> Encoders:
    """One encoder a template."""
    return {name: make_encoder(folder, shape.source) for name, shape in SHAPES.items()}
