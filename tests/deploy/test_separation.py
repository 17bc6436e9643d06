"""What runs users' code sees neither the database nor the data root, and has its own rights only, wherever it runs."""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from qtune_service.server.settings import Settings
from tests.deploy.manifests import (
    OVERLAYS,
    Object,
    all_containers,
    named,
    of_kind,
    pods,
    rendered,
    rendered_from_page,
    settings_of,
)
from tests.jobs import REPO

SERVER = {"api", "admin", "migrate"}
"""Components that are the service itself: `admin` and `migrate` are commands of the same image."""
SHARED = {"outputs": False, "datasets": True, "inputs": True, "models": True}
"""Folders of the data root that Ray's nodes may mount, and whether they are read-only there."""
COMPOSE: Object = yaml.safe_load((REPO / "deploy" / "compose.yaml").read_text(encoding="utf-8"))
RAY = ("ray-head", "worker")


def exposed(objects: list[Object]) -> list[str]:
    """Return what lets a pod that is not the server's reach the database, its volume or the server's secrets."""
    return [line for pod in pods(objects) if component(pod) not in SERVER for line in _exposed(pod)]


def component(pod: Object) -> str:
    """Return the component that a pod says it is."""
    return str(pod["metadata"]["labels"]["app.kubernetes.io/component"])


def _exposed(pod: Object) -> Iterator[str]:
    who = component(pod)
    claims = {v["name"]: v for v in pod["spec"].get("volumes", ()) if "persistentVolumeClaim" in v}
    for volume in pod["spec"].get("volumes", ()):
        if {"hostPath", "projected", "csi"} & volume.keys():
            yield f"{who}: volume {volume['name']}"
        if volume.get("secret", {}).get("secretName") == "qtune-database":
            yield f"{who}: secret of volume {volume['name']}"
    for container in all_containers(pod):
        for mount in container.get("volumeMounts", ()):
            if mount["name"] in claims and not _is_shared(mount):
                yield f"{who}: {mount}"
        text = json.dumps([container.get("env", []), container.get("envFrom", [])])
        yield from (f"{who}: {name}" for name in ("QTUNE_DATABASE_URL", "qtune-database") if name in text)
        sources = [source.get("configMapRef", {}).get("name", "") for source in container.get("envFrom", ())]
        yield from (f"{who}: the server's settings" for source in sources if source.startswith("qtune"))


def _is_shared(mount: Object) -> bool:
    """Return whether a mount is a folder of the data root, at the server's path, with no more rights."""
    folder = mount.get("subPath", "")
    known = folder in SHARED and "subPathExpr" not in mount
    return known and mount["mountPath"] == f"/var/lib/qtune/{folder}" and mount.get("readOnly", False) >= SHARED[folder]


@pytest.mark.parametrize("folder", OVERLAYS)
def test_no_pod_but_the_servers_sees_the_database(folder: str) -> None:
    """Neither its volume nor its address."""
    objects = rendered(folder)
    assert exposed(objects) == []
    assert {component(pod) for pod in pods(objects)} >= {"ray-head", "ray-worker"}


def test_the_overlay_of_the_page_keeps_that(tmp_path: Path) -> None:
    """As readers are told to write it."""
    assert exposed(rendered_from_page(tmp_path)) == []


@pytest.mark.parametrize(
    "mount",
    [
        {"name": "data", "mountPath": "/var/lib/qtune"},
        {"name": "data", "mountPath": "/x"},
        {"name": "data", "mountPath": "/var/lib/qtune/jobs", "subPath": "jobs", "readOnly": True},
        {"name": "data", "mountPath": "/var/lib/qtune/datasets", "subPath": "datasets"},
        {"name": "data", "mountPath": "/var/lib/qtune/outputs", "subPath": "outputs/.."},
        {"name": "data", "mountPath": "/var/lib/qtune/outputs", "subPathExpr": "$(X)"},
    ],
)
@pytest.mark.parametrize("kind", ["containers", "initContainers"])
def test_a_mount_of_more_is_found(mount: Object, kind: str) -> None:
    """The check checks: of the head's own containers and of those that run before them."""
    objects = rendered("overlays/dev")
    (head, *_) = pods(named(objects, "RayCluster", "qtune")["spec"]["headGroupSpec"])
    head["spec"].setdefault(kind, [copy.deepcopy(head["spec"]["containers"][0])])[0]["volumeMounts"].append(mount)
    assert len(exposed(objects)) == 1


def test_jobs_find_what_the_server_names() -> None:
    """In dev, the places that the server names to jobs are mounted at the same path on every node."""
    objects = rendered("overlays/dev")
    given = settings_of(objects)
    settings = Settings(data_root=Path(given["QTUNE_DATA_ROOT"]))
    wanted = {settings.outputs, settings.datasets, given["QTUNE_ALLOWED_INPUTS"]}
    wanted |= {place for place in given["QTUNE_ALLOWED_MODELS"].split(":") if place.startswith("/")}
    for pod in pods(of_kind(objects, "RayCluster")):
        mounted = {m["mountPath"] for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == "data"}
        assert mounted == wanted
    (server,) = pods(named(objects, "Deployment", "qtune-api"))
    (mount,) = [m for m in server["spec"]["containers"][0]["volumeMounts"] if m["name"] == "data"]
    assert (mount["mountPath"], mount.get("subPath")) == (given["QTUNE_DATA_ROOT"], None)
    assert settings.database.startswith(f"sqlite:///{given['QTUNE_DATA_ROOT']}/")


# --- compose


def test_no_ray_node_of_compose_sees_the_database() -> None:
    """Neither a volume of the api, of the database or of the store, nor their networks and secrets."""
    services: dict[str, Object] = COMPOSE["services"]
    kept = {v.partition(":")[0] for name in ("api", "database", "store") for v in services[name]["volumes"]}
    kept.discard("${QTUNE_MODELS")  # read-only, and the same for all
    assert {"api", "database", "store"} <= kept
    for name in RAY:
        service = services[name]
        assert {v.partition(":")[0] for v in service["volumes"]} & kept == set()
        mounts = [volume for volume in service["volumes"] if ":" in volume and volume.startswith((".", "/", "$"))]
        assert all(volume.endswith(":ro") for volume in mounts)
        assert "database" not in service["networks"]
        assert set(service["secrets"]) == {"ray_token", "nodes_aws_credentials"}
        assert not any(variable.startswith("QTUNE_") for variable in service["environment"])


def test_the_stores_own_password_goes_no_further() -> None:
    """Only the store has it, and what makes the others' users; each of these has its own credentials."""
    services: dict[str, Object] = COMPOSE["services"]
    holders = {
        name for name, service in services.items() if {"store_user", "store_password"} & set(service.get("secrets", ()))
    }
    assert holders == {"store", "store-setup"}
    files = {name: services[name]["environment"]["AWS_SHARED_CREDENTIALS_FILE"] for name in ("api", *RAY)}
    assert files == {
        "api": "/run/secrets/api_aws_credentials",
        "ray-head": "/run/secrets/nodes_aws_credentials",
        "worker": "/run/secrets/nodes_aws_credentials",
    }
    assert services["api"]["depends_on"]["store-setup"] == {"condition": "service_completed_successfully"}
    assert services["store-setup"]["image"] == services["store"]["image"]


def allows(user: str, action: str, resource: str) -> bool:
    """Return whether a user's policy has a statement for this; there is no other way in, and no denial."""
    policy = json.loads((REPO / "deploy" / "store" / f"{user}.json").read_text(encoding="utf-8"))
    assert all(statement["Effect"] == "Allow" for statement in policy["Statement"])
    return any(
        action in statement["Action"]
        and any(
            re.fullmatch(re.escape(r).replace(r"\*", ".*"), f"arn:aws:s3:::{resource}") for r in statement["Resource"]
        )
        for statement in policy["Statement"]
    )


@pytest.mark.parametrize(
    ("action", "resource", "who"),
    [
        ("s3:ListBucket", "qtune", {"api", "nodes"}),
        ("s3:GetObject", "qtune/datasets/a.jsonl", {"api", "nodes"}),
        ("s3:PutObject", "qtune/outputs/job/manifest.json", {"api", "nodes"}),
        ("s3:DeleteObject", "qtune/outputs/job/_qtune/lease.json", {"api", "nodes"}),
        ("s3:PutObject", "qtune/outputs/", {"api", "nodes"}),
        ("s3:PutObject", "qtune/datasets/a.jsonl", {"api"}),
        ("s3:DeleteObject", "qtune/datasets/a.jsonl", {"api"}),
        ("s3:PutObject", "qtune/other", set()),
        ("s3:GetObject", "other/a.jsonl", set()),
        ("s3:GetObject", "qtune-other/a.jsonl", set()),
        ("s3:ListBucket", "other", set()),
        ("s3:DeleteBucket", "qtune", set()),
        ("s3:PutBucketPolicy", "qtune", set()),
        ("s3:ListAllMyBuckets", "*", set()),
        ("admin:CreateUser", "*", set()),
    ],
)
def test_rights_in_the_store(action: str, resource: str, who: set[str]) -> None:
    """Nodes read the bucket and write outputs; the api writes uploads, too; nobody else's buckets, and no rights."""
    assert {user for user in ("api", "nodes") if allows(user, action, resource)} == who


def test_no_right_is_a_pattern() -> None:
    """Every action is named, so that none is allowed by the way."""
    for user in ("api", "nodes"):
        assert "*" not in re.sub(r"qtune/(?:\w+/)?\*", "", (REPO / "deploy" / "store" / f"{user}.json").read_text())


MC = """#!{python}
import json, pathlib, sys
state = pathlib.Path(__file__).parent / "state"
words, given = sys.argv[1:], "" if sys.stdin.isatty() else sys.stdin.read()
with (state / "calls").open("a") as calls:
    calls.write(json.dumps([words, given]) + "\\n")
if words[:3] == ["admin", "policy", "attach"]:
    mark = state / words[4]
    if mark.exists():
        sys.exit("mc: <ERROR> The specified policy change is already in effect.")
    mark.touch()
if words[:3] == ["admin", "policy", "entities"]:
    print(*(mark.name for mark in state.iterdir() if mark.name.endswith(words[5].partition("-")[2])))
if words[:3] == ["admin", "policy", "create"]:
    json.loads(pathlib.Path(words[5]).read_text())
"""
"""Stands for the store's client, which is not here: it keeps what it is asked, and refuses to attach a policy twice."""


def test_the_store_is_set_up_twice(tmp_path: Path) -> None:
    """By a shell that has `mc` and nothing else; with the keys of secrets.sh, of which none is on a command line."""
    subprocess.run([shutil.copy(REPO / "deploy" / "secrets.sh", tmp_path)], check=True, capture_output=True)
    (tmp_path / "bin" / "state").mkdir(parents=True)
    mc = tmp_path / "bin" / "mc"
    mc.write_text(MC.replace("{python}", sys.executable))
    mc.chmod(0o755)
    text = (REPO / "deploy" / "store" / "setup.sh").read_text().replace("/run/secrets", str(tmp_path / "secrets"))
    script = tmp_path / "setup.sh"
    script.write_text(text.replace("/setup/", f"{REPO}/deploy/store/").replace("/tmp/mc", str(tmp_path / "mc")))
    for _ in range(2):
        command, env = ["/bin/sh", str(script)], {"PATH": str(mc.parent)}
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    calls = [json.loads(line) for line in (tmp_path / "bin" / "state" / "calls").read_text().splitlines()]
    secret = {path.name: path.read_text() for path in (tmp_path / "secrets").iterdir()}
    first = [words for words, _ in calls[: len(calls) // 2 + 1]]
    assert first[1] == ["mb", "--ignore-existing", "store/qtune"]
    assert [words[3:] for words in first if words[:3] == ["admin", "policy", "attach"]] == [
        ["store", "qtune-api", "--user", "qtune-api"],
        ["store", "qtune-nodes", "--user", "qtune-nodes"],
    ]
    assert calls[0][1] == f"{secret['store_user']}\n{secret['store_password']}\n"
    added = [given.split() for words, given in calls if words[:3] == ["admin", "user", "add"]]
    for user, key in added:
        assert key in secret[f"{user.removeprefix('qtune-')}_aws_credentials"]
    assert len(added) == 4
    keys = {secret["store_password"], *(key for _, key in added)}
    assert len(keys) == 3
    assert not any(key in word for words, _ in calls for word in words for key in keys)


def test_missing_secrets_are_made_later(tmp_path: Path) -> None:
    """An installation of an older version gets the two users; its passwords stay, and the old file is named."""
    script = shutil.copy(REPO / "deploy" / "secrets.sh", tmp_path)
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    old = {
        "database_password": "p",
        "qtune_database_url": "u",
        "ray_token": "t",
        "store_user": "qtune",
        "store_password": "k",
    }
    for name, value in {**old, "aws_credentials": "k"}.items():
        (folder / name).write_text(value)
    done = subprocess.run([script], check=True, capture_output=True, text=True)
    assert {name: (folder / name).read_text() for name in old} == old
    assert {path.name for path in folder.iterdir()} == {*COMPOSE["secrets"], "aws_credentials"}
    assert "remove" in done.stderr
    assert "aws_credentials" in done.stderr
