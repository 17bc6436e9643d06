"""Tests of the report that the service serves, in a browser: it works without access to the service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.api.servers import scripted, serving, settings
from tests.api.test_outputs_api import finished_job
from tests.finished_outputs import FinishedOutputs


def test_the_served_report_is_alive_and_alone(tmp_path: Path, outputs: FinishedOutputs, browser: Any) -> None:
    """Scripts and styles work in the sandbox, without access to cookies or the API."""
    with serving(settings(tmp_path), scripted(tmp_path)) as client:
        job = finished_job(tmp_path, outputs.pruned)
        page = browser.new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.goto(f"{client.base_url}/api/v1/jobs/{job}/report")
        page.wait_for_selector("#plane-chart svg, #plane-chart canvas")
        assert complaints == []
        asked = "fetch('/api/v1/jobs').then(() => 'read', () => 'refused')"
        assert page.evaluate(asked) == "refused"
        assert page.evaluate("(() => { try { return document.cookie } catch { return 'refused' } })()") == "refused"
        page.close()
