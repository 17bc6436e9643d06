"""deploy/ray/: what `ray up` reads, checked by Ray's own schema and rules, since it has no dry run."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.jobs import REPO

FOLDER = REPO / "deploy" / "ray"
FILES = sorted(FOLDER.glob("*.yaml"))


def cluster(path: Path) -> dict[str, Any]:
    """Return a file as Ray reads it, with its defaults."""
    util = pytest.importorskip("ray.autoscaler._private.util", reason="needs Ray, whose schema this is")
    body = yaml.safe_load(path.read_text(encoding="utf-8"))
    made: dict[str, Any] = util.prepare_config(body)
    util.validate_config(made)
    return made


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_ray_takes_it(path: Path) -> None:
    """Ray's own schema and checks, which `ray up` makes before it asks for a machine."""
    made = cluster(path)
    assert made["cluster_name"] == "qtune"
    assert made["head_node_type"] in made["available_node_types"]


def test_the_schema_refuses_what_is_wrong(tmp_path: Path) -> None:
    """A typing mistake does not pass: the check checks."""
    jsonschema = pytest.importorskip("jsonschema")
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text((FOLDER / "aws.yaml").read_text(encoding="utf-8").replace("idle_timeout_minutes", "idle_timeout"))
    with pytest.raises(jsonschema.ValidationError, match="idle_timeout"):
        cluster(wrong)


def test_gpu_workers_come_and_go() -> None:
    """On a cloud: from none to some, gone when idle, also where the provider takes them away; the head has no GPU."""
    made = cluster(FOLDER / "aws.yaml")
    types = made["available_node_types"]
    worker, cpu_worker, head = types["gpu_worker"], types["cpu_worker"], types["head"]
    assert worker["min_workers"] == cpu_worker["min_workers"] == 0
    assert worker["max_workers"] + cpu_worker["max_workers"] == made["max_workers"]
    assert cpu_worker["resources"] == {"cpu_node": 1}
    assert any("QTUNE_CPU_NODES=cpu_node" in command for command in made["head_start_ray_commands"])
    assert made["idle_timeout_minutes"] > 0
    assert worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert "GPU" not in head["resources"]
    assert made["provider"]["cache_stopped_nodes"] is False, "stopped nodes are paid for"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nobody_gets_in_without_the_token(path: Path) -> None:
    """Every node starts with token authentication and has the token; the dashboard listens on the head alone."""
    made = cluster(path)
    starts = [c for c in made["head_start_ray_commands"] + made["worker_start_ray_commands"] if "ray start" in c]
    assert len(starts) == 2
    assert all("RAY_AUTH_MODE=token ray start" in command for command in starts)
    assert "--dashboard-host=127.0.0.1" in starts[0]
    assert made["file_mounts"]["~/.ray/auth_token"] == "ray-token"
    assert "chmod 600 ~/.ray/auth_token" in made["setup_commands"]
    assert "ray-token" in (REPO / ".gitignore").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_nodes_get_this_package(path: Path, tmp_path: Path) -> None:
    """The wheel, and the tested versions for GPUs, by the installer, for which all that it reads is brought along.
    What is copied is there, or made by the first commands of the file.
    """
    made = cluster(path)
    made_before = {"dist", "ray-token"}
    for local in made["file_mounts"].values():
        assert local in made_before or (REPO / local).exists(), local
    head = re.match(r"(#.*\n)+", path.read_text(encoding="utf-8"))
    assert head is not None
    assert "--wheel-dir dist" in head[0]
    assert "ray-token" in head[0]
    (requirements,) = [command for command in made["setup_commands"] if "install.py" in command]
    assert "--engine gpu --no-dev --requirements-only" in requirements
    for remote, local in made["file_mounts"].items():
        if (REPO / local).is_file() and local not in made_before:
            place = tmp_path / remote.removeprefix("~/qtune/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPO / local, place)
    installer = runpy.run_path(str(tmp_path / "scripts" / "install.py"))
    assert any(line.startswith("vllm") for line in installer["project"](["api", "gpu"], itself=False))
    pins = dict(line.split("==") for line in installer["gpu_constraints"]())
    assert f"torch=={pins['torch']}" == installer["TORCH"]
    (package,) = [command for command in made["setup_commands"] if "pip install" in command and ".whl" in command]
    assert "--no-deps" in package
