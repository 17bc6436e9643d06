"""Fixtures of the data layer's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.s3 import S3Endpoint, serve_s3


@pytest.fixture(scope="session")
def s3() -> Iterator[S3Endpoint]:
    """A real S3 endpoint with one bucket; the AWS environment points to it."""
    with serve_s3() as endpoint:
        yield endpoint
