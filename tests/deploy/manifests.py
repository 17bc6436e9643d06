"""What kustomize makes of k8s/, as plain data, and the parts of it that tests ask about."""

from __future__ import annotations

import copy
import functools
import re
import shutil
import subprocess
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from tests.jobs import REPO

ROOT = REPO / "k8s"
OVERLAYS = ("overlays/dev", "overlays/gpu", "overlays/prod", "oneshot")
Object = dict[str, Any]


def _kustomize(folder: Path) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    command = ["kubectl", "kustomize", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    return done.stdout


@functools.cache
def _objects(folder: str) -> list[Object]:
    return [found for found in yaml.safe_load_all(_kustomize(ROOT / folder)) if found]


def rendered(folder: str) -> list[Object]:
    """Return the objects of a folder. Skip where there is no kubectl."""
    return copy.deepcopy(_objects(folder))


def rendered_from_page(folder: Path) -> list[Object]:
    """Return the overlay that docs/operations/kubernetes.md tells readers to make, beside a copy of k8s/."""
    page = (REPO / "docs" / "operations" / "kubernetes.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^ *```text\n( *# my/kustomization\.yaml\n.*?)^ *```", page, re.DOTALL | re.MULTILINE)
    shutil.copytree(ROOT, folder / "k8s")
    (folder / "my").mkdir()
    (folder / "my" / "kustomization.yaml").write_text(textwrap.dedent(block))
    return [found for found in yaml.safe_load_all(_kustomize(folder / "my")) if found]


def of_kind(objects: list[Object], *kinds: str) -> list[Object]:
    """Return the objects of some kinds."""
    return [found for found in objects if found["kind"] in kinds]


def named(objects: list[Object], kind: str, name: str) -> Object:
    """One, by its name or, where kustomize puts a digest behind it, by the beginning of it."""
    (found,) = [
        o for o in of_kind(objects, kind) if o["metadata"]["name"].split("-")[: name.count("-") + 1] == name.split("-")
    ]
    return found


def pods(value: Any) -> Iterator[Object]:
    """Every pod template below, at any depth: {metadata, spec}."""
    if isinstance(value, dict):
        spec = value.get("spec")
        if isinstance(spec, dict) and "containers" in spec:
            yield value
        for below in value.values():
            yield from pods(below)
    elif isinstance(value, list):
        for below in value:
            yield from pods(below)


def containers(objects: list[Object]) -> list[Object]:
    """Return the containers of all pods."""
    return [container for pod in pods(objects) for container in all_containers(pod)]


def all_containers(pod: Object) -> list[Object]:
    """Return all containers of a pod: its own, init and sidecar containers."""
    kinds = ("containers", "initContainers", "ephemeralContainers")
    return [container for kind in kinds for container in pod["spec"].get(kind, ())]


def settings_of(objects: list[Object]) -> dict[str, str]:
    """Return the ConfigMap with the service's settings."""
    (found,) = [o["data"] for o in of_kind(objects, "ConfigMap") if "QTUNE_HOST" in o["data"]]
    return dict(found)


@functools.cache
def validator_of(folder: Path, kind: str) -> Any:
    """Return a strict validator of one of Ray's kinds: misspelt fields are errors."""
    plural = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}[kind]
    body = yaml.load((folder / f"ray.io_{plural}.yaml").read_text(), Loader=yaml.CSafeLoader)  # seconds without C
    (version,) = [v for v in body["spec"]["versions"] if v["name"] == "v1"]
    schema: Object = _strict(version["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, of which the CRD says nothing
    return jsonschema.Draft202012Validator(schema)


def _strict(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _strict(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string") is True:
        made = {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        made["additionalProperties"] = schema.get("x-kubernetes-preserve-unknown-fields", False)
    if schema.get("nullable") is True:
        made = {"anyOf": [made, {"type": "null"}]}
    return made
