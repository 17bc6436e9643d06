"""Object stores that are slow, fail for a while, or fail for good; and two drivers on one output there."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compare import differences
from tests.jobs import demo_job, qtune, start
from tests.processes import wait_for
from tests.s3 import Faults, S3Endpoint, faulty

OUTAGE_S = 2.0


@pytest.fixture
def faults(s3: S3Endpoint) -> Iterator[Faults]:
    """Yield a proxy before the object store."""
    with faulty(s3) as proxy:
        yield proxy


def scored(s3: S3Endpoint, prefix: str) -> int:
    """Finished shards of an output there."""
    return len(s3.keys(f"{prefix}/_qtune/scored/"))


def job(s3: S3Endpoint, output: str) -> tuple[object, ...]:
    """Return the arguments of the demo job with its output on the object store."""
    return demo_job(s3.uri(output), "--engine", "reference")


@pytest.mark.slow
def test_a_short_outage_and_a_slow_endpoint_are_survived(
    s3: S3Endpoint, faults: Faults, undisturbed: Path, tmp_path: Path
) -> None:
    """An endpoint that answers 503, then slowly, costs time and nothing else. A second driver is refused."""
    process = start(*job(s3, "short"), env=faults.endpoint.env)
    wait_for(lambda: scored(s3, "short") >= 2, process)
    faults.mode = "refuse"
    time.sleep(OUTAGE_S)
    faults.mode = "slow"
    second = qtune(*job(s3, "short"), env=s3.env)
    faults.mode = "pass"
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 0, text
    assert faults.refused_at_s, "nothing was asked of the endpoint while it failed"
    assert second.returncode == 2, second.stderr
    assert "another qtune process" in second.stderr
    s3.download("short", tmp_path / "out")
    assert differences(undisturbed, tmp_path / "out") == []


@pytest.mark.slow
def test_an_endpoint_that_fails_for_good_is_one_message(
    s3: S3Endpoint, faults: Faults, undisturbed: Path, tmp_path: Path
) -> None:
    """After retries that spread out, the job ends with one message that names the place; the same command goes on."""
    process = start(*job(s3, "long"), env=faults.endpoint.env)
    wait_for(lambda: scored(s3, "long") >= 2, process)
    faults.mode = "refuse"
    text, _ = process.communicate(timeout=240)
    assert process.returncode == 4, text
    assert s3.uri("long") in text
    assert "Traceback" not in text
    assert len(faults.refused_at_s) > 4, "it did not try again"
    marked = scored(s3, "long")
    done = qtune(*job(s3, "long"), env=s3.env)
    assert done.returncode == 0, done.stderr
    assert f"continuing: {marked} of" in done.stderr
    s3.download("long", tmp_path / "out")
    assert differences(undisturbed, tmp_path / "out") == []
