"""A finished output that all tests of exports share."""

from __future__ import annotations

from pathlib import Path

import pytest

from qtune_service.outputs.finished import FinishedOutput
from tests.outputs import chats, finished_output

NUM_CHATS = 120


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """Conversations in a dozen shards, half of them kept, tokens of Q2 pruned."""
    folder = tmp_path_factory.mktemp("finished")
    return finished_output(folder, list(chats(NUM_CHATS)), prune={"sample_keep_ratio": 0.5, "token_keep_ratio": 0.6})


@pytest.fixture(scope="session")
def weighed(tmp_path_factory: pytest.TempPathFactory) -> FinishedOutput:
    """The same by InfoBatch: samples of every quadrant are kept, tokens of all of them pruned, and losses weighed."""
    folder = tmp_path_factory.mktemp("weighed")
    return finished_output(folder, list(chats(NUM_CHATS)), prune={"sample_keep_ratio": 0.5, "strategy": "infobatch"})


@pytest.fixture
def out(finished: FinishedOutput) -> Path:
    """Its folder."""
    return Path(finished.root)
