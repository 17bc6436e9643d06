"""When the wait for a node that left is given up, and when it is only told."""

from __future__ import annotations

import time

import pytest

from qtune_service.pipeline import stranded
from qtune_service.pipeline.stranded import StrandedError, watch_stranded
from qtune_service.pipeline.supervision import Guard


class StillGuard(Guard):
    """A guard of a job where nothing moves."""

    def idle(self, here: object) -> tuple[float, bool]:
        """Idle for a minute; whether a node was lost is what the test put in place of a supervisor."""
        assert here == {"n1"}
        return 60.0, self.supervisor


@pytest.mark.parametrize("has_lost", [True, False])
def test_a_lost_node_is_given_up_and_a_missing_one_is_told_once(
    *, has_lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a node lost the stream is given up; where there never was one, people are told that the job waits."""
    monkeypatch.setattr(stranded, "nodes_here", lambda: {"n1"})
    monkeypatch.setattr(stranded, "ASKED_S", 0.01)
    given_up: list[StrandedError] = []
    told: list[str] = []
    with watch_stranded(StillGuard(has_lost, 3), given_up.append, told.append):
        deadline_s = time.monotonic() + 5
        while not (given_up or told) and time.monotonic() < deadline_s:
            time.sleep(0.01)
        time.sleep(0.1)  # for what must not come a second time
    assert (len(given_up), len(told)) == ((1, 0) if has_lost else (0, 1))
