"""Fixtures for all tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from qtune_service.output.reader import FinishedOutput
    from tests.finished_outputs import FinishedOutputs
    from tests.s3 import S3Endpoint

REPO = Path(__file__).resolve().parent.parent
LONGEST_FIRST = ("ray", "docs", "browser", "engine", "training", "api")
"""Folders in the order in which processes take them, so that none begins a long file when the others are done."""

SHORT_RUN_S = 60
"""Runs below this have no table of slow files."""

# Tests run side by side: a time limit for each example says more of the machine than of the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose tests take longest."""
    items.sort(key=lambda item: _place(item.path.relative_to(REPO / "tests").parts[0]))


def _place(folder: str) -> int:
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the files whose tests took longest, and how long each worker process was busy."""
    by_file: dict[str, float] = defaultdict(float)
    by_worker: dict[str, float] = defaultdict(float)
    reports = chain.from_iterable(terminalreporter.stats.values())
    for report in {id(report): report for report in reports if isinstance(report, pytest.TestReport)}.values():
        by_file[report.nodeid.partition("::")[0]] += report.duration
        by_worker[getattr(report, "worker_id", "this process")] += report.duration
    if sum(by_file.values()) < SHORT_RUN_S:
        return
    terminalreporter.section("slowest 10 files")
    for file, seconds in sorted(by_file.items(), key=lambda item: -item[1])[:10]:
        terminalreporter.write_line(f"{seconds:8.1f}s {file}")
    for worker, seconds in sorted(by_worker.items()):
        terminalreporter.write_line(f"{seconds:8.1f}s {worker}, all files")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """Folder of real datasets, golden cases and a tiny real model, beside the checkout; skips where it is absent."""
    path = REPO.parent / "shared"
    if not path.is_dir():
        pytest.skip("needs ../shared (golden cases, datasets, a tiny model) beside the checkout")
    return path


@pytest.fixture(scope="session")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutputs:
    """Return a finished output of 120 samples in five shards, scored only and pruned. Tests leave it as it is."""
    from tests.finished_outputs import make_outputs

    return make_outputs(tmp_path_factory.mktemp("outputs"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Return an output of 120 conversations in a dozen shards: half of them kept, tokens of Q2 pruned. Not to be
    changed.
    """
    from tests.finished_outputs import chats, finished_output

    method = {"sample_keep_ratio": 0.5, "token_keep_ratio": 0.6}
    return finished_output(tmp_path_factory.mktemp("finished"), chats(120), prune_by=method)


@pytest.fixture(scope="session")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Return an output pruned by InfoBatch: samples of any quadrant kept, tokens of all of them pruned, losses
    weighted.
    """
    from tests.finished_outputs import chats, finished_output

    method = {"sample_keep_ratio": 0.5, "strategy": "infobatch"}
    return finished_output(tmp_path_factory.mktemp("weighed"), chats(120), prune_by=method)


@pytest.fixture
def out(finished: FinishedOutput) -> Path:
    """Return the folder of `finished`."""
    return Path(finished.root)


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """Start one S3 server for the session and return its URL."""
    from tests.s3 import s3_server

    with s3_server() as url:
        yield url


@pytest.fixture(scope="module")
def s3(s3_url: str) -> Iterator[S3Endpoint]:
    """Return an S3 endpoint with an empty bucket of the module's own. The AWS environment points to it."""
    from tests.s3 import s3_bucket

    with s3_bucket(s3_url) as endpoint:
        yield endpoint
