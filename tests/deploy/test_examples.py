"""deploy/specs and deploy/prometheus: job files that load, and rules over metrics that there are."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from qtune_service.job_states import JobStatus
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.jobs.store import JobStore
from qtune_service.server.metrics import Metrics
from qtune_service.server.middleware import Answered
from qtune_service.spec_files import load_spec
from tests.jobs import REPO

SPECS = sorted((REPO / "deploy" / "specs").iterdir())
ALERTS = REPO / "deploy" / "prometheus" / "alerts.yaml"
OF_PROMETHEUS = frozenset(
    {"up", "max", "min", "sum", "rate", "delta", "histogram_quantile", "by", "and", "or", "le", "job", "status"}
    | {"route", "failed", "running", "qtune", "reason", "resources", "hanging"}
)


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.name)
def test_job_files_load(path: Path) -> None:
    """Every field is one that there is."""
    spec = load_spec(path)
    assert spec.prune is not None
    assert spec.output.path


def test_there_is_one_for_each_kind_of_disk() -> None:
    """This machine's, one that all nodes have, an object store."""
    outputs = {path.stem: load_spec(path).output.path for path in SPECS}
    assert outputs["shared-disk"].startswith("/")
    assert outputs["s3"].startswith("s3://")
    laptop = load_spec(REPO / "deploy" / "specs" / "laptop.json")
    for place in (*laptop.input.paths, laptop.model.name):
        assert (REPO / place).exists(), "it runs as it is, from the repository"


def rules() -> list[dict[str, Any]]:
    """All alerts."""
    body = yaml.safe_load(ALERTS.read_text(encoding="utf-8"))
    return [rule for group in body["groups"] for rule in group["rules"]]


def metrics(folder: Path) -> str:
    """Return the metrics of a server that has answered a request."""
    database = open_database(f"sqlite:///{folder}/a.db")
    upgrade(database)
    made = Metrics(JobStore(database))
    made.note_request(Answered("GET", "/api/v1/jobs", 200, 0.1))
    return made.text().decode()


def test_every_metric_of_a_rule_is_there(tmp_path: Path) -> None:
    """By the names that the server really tells, and with the labels and statuses that it has."""
    text = metrics(tmp_path)
    told = set(re.findall(r"^(\w+)(?:\{| )", text, re.MULTILINE))
    for rule in rules():
        assert names_in(rule["expr"]) <= told, rule["alert"]
    named = {value for rule in rules() for value in re.findall(r'status="(\w+)"', rule["expr"])}
    assert named <= set(JobStatus)
    assert 'route="/api/v1/jobs"' in text


def names_in(expression: str) -> set[str]:
    """Return the metrics that an expression names."""
    plain = re.sub(r'"[^"]*"|\[\w+\]', "", expression)
    return set(re.findall(r"\b[A-Za-z_]\w*", plain)) - OF_PROMETHEUS


def test_names_are_found() -> None:
    """The check checks: labels, ranges and numbers are no metrics, all else is."""
    expression = 'max(qtune_lost{status="failed"}) > 2e9 and rate(qtune_x_bucket[5m]) > 6 * 3600'
    assert names_in(expression) == {"qtune_lost", "qtune_x_bucket"}


def test_every_rule_says_what_to_do() -> None:
    """Who is woken reads what is wrong and what to do; names are not given twice."""
    found = rules()
    assert len({rule["alert"] for rule in found}) == len(found) > 4
    for rule in found:
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_prometheus_takes_the_rules() -> None:
    """By its own tool, where it is."""
    if (promtool := shutil.which("promtool")) is None:
        pytest.skip("needs promtool (Debian: apt-get install prometheus)")
    done = subprocess.run([promtool, "check", "rules", str(ALERTS)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
