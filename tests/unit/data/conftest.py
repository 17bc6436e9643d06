"""Fixtures of the data layer's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import S3Endpoint, serve_s3
from tests.unit.data.chat_models import SHAPES, Encoders, make_encoder, save_tokenizer


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Endpoint]:
    """A real S3 endpoint with one bucket; the AWS environment points to it."""
    with serve_s3() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer without a template."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def encoders(folder: Path) -> Encoders:
    """One encoder a template."""
    return {name: make_encoder(folder, shape.source) for name, shape in SHAPES.items()}
