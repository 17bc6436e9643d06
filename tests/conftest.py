"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

if TYPE_CHECKING:
    from qtune_service.output.reader import FinishedOutput
    from tests.finished_outputs import FinishedOutputs

REPO = Path(__file__).resolve().parent.parent
LONGEST_FIRST = ("ray", "docs", "browser", "engine", "training", "api")
"""Folders in the order in which processes take them, so that none begins a long file when the others are done."""

# Tests run side by side: a time limit for each example says more of the machine than of the code.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the folders whose tests take longest."""
    items.sort(key=lambda item: _place(item.path.relative_to(REPO / "tests").parts[0]))


def _place(folder: str) -> int:
    return LONGEST_FIRST.index(folder) if folder in LONGEST_FIRST else len(LONGEST_FIRST)


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


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """An output of 120 conversations in a dozen shards: half of them kept, tokens of Q2 pruned. Not to be changed."""
    from tests.finished_outputs import chats, finished_output

    method = {"sample_keep_ratio": 0.5, "token_keep_ratio": 0.6}
    return finished_output(tmp_path_factory.mktemp("finished"), chats(120), prune_by=method)


@pytest.fixture(scope="session")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """The same by InfoBatch: samples of any quadrant are kept, tokens of all of them pruned, and losses weighed."""
    from tests.finished_outputs import chats, finished_output

    method = {"sample_keep_ratio": 0.5, "strategy": "infobatch"}
    return finished_output(tmp_path_factory.mktemp("weighed"), chats(120), prune_by=method)


@pytest.fixture
def out(finished: FinishedOutput) -> Path:
    """The folder of the first."""
    return Path(finished.root)
