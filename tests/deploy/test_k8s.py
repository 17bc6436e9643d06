"""k8s/ renders, fits the schemas of what it talks to, and names only what the code has."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import jsonschema
import pytest
import typer.main

from qtune_service import __version__, cli
from qtune_service.pipeline.ray_executor import CPU_NODES
from qtune_service.server.app import create_app
from qtune_service.server.jobs.database import open_database, upgrade
from qtune_service.server.jobs.store import JobStore
from qtune_service.server.launchers.kuberay import Account, KubeApi, KubeRayLauncher
from qtune_service.server.metrics import Metrics
from qtune_service.server.middleware import Answered
from qtune_service.server.settings import Settings, load_settings
from qtune_service.spec_files import load_spec
from tests.api.kube_server import kubernetes
from tests.api.servers import settings
from tests.api.test_ray_jobs import job
from tests.deploy.manifests import (
    OVERLAYS,
    ROOT,
    Object,
    containers,
    named,
    of_kind,
    pods,
    rendered,
    rendered_from_page,
    settings_of,
    validator_of,
)
from tests.jobs import REPO

CRDS = REPO.parent / "shared" / "crds"
SERVICES = OVERLAYS[:3]
KUBERNETES = "1.34"
IMAGES = {f"qtune/{name}:{__version__}" for name in ("api", "worker-cpu", "worker-gpu")}
UID = 10001
FOREIGN = {"HF_HOME", CPU_NODES, "HOME", "FORWARDED_ALLOW_IPS", "RAY_USAGE_STATS_ENABLED", "RAY_JOB_STOP_WAIT_TIME_S"}
"""Variables that others read: drivers, the system, uvicorn, Ray."""

each_overlay = pytest.mark.parametrize("folder", OVERLAYS)
each_service = pytest.mark.parametrize("folder", SERVICES)


@pytest.fixture
def crds() -> Path:
    """KubeRay's CustomResourceDefinitions."""
    if not CRDS.is_dir():
        pytest.skip("../shared/crds is not here")
    return CRDS


# --- schemas


@each_overlay
def test_built_in_kinds_are_valid(folder: str) -> None:
    """Strictly: unknown fields are errors."""
    validator = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    built_in = [o for o in rendered(folder) if "ray.io" not in o["apiVersion"] and "coreos" not in o["apiVersion"]]
    assert len(built_in) >= 7
    for found in built_in:
        validator.validate(found, KUBERNETES, strict=True)


@each_overlay
def test_ray_kinds_are_valid(folder: str, crds: Path) -> None:
    """Strictly, by KubeRay's own definitions."""
    found = of_kind(rendered(folder), "RayCluster", "RayJob")
    assert len(found) == 1
    validator_of(crds, found[0]["kind"]).validate(found[0])


def test_the_ray_check_finds_misspelt_fields(crds: Path) -> None:
    """At any depth; so the test above can fail."""
    validator = validator_of(crds, "RayCluster")
    for wrong in ("minReplica", "maxReplicas"):
        cluster = named(rendered("overlays/dev"), "RayCluster", "qtune")
        cluster["spec"]["workerGroupSpecs"][0][wrong] = "one"
        with pytest.raises(jsonschema.ValidationError):
            validator.validate(cluster)


def test_what_the_launcher_makes_is_valid_and_allowed(crds: Path, tmp_path: Path) -> None:
    """A RayJob after the cluster of prod fits its definition, and the Role lets the server do all that it does."""
    objects = rendered("overlays/prod")
    with kubernetes(tmp_path / "account") as kube:
        kube.objects["rayclusters/qtune"] = named(objects, "RayCluster", "qtune")
        api = KubeApi(kube.address, Account(kube.account))
        launcher = KubeRayLauncher(api, tmp_path, cluster="qtune", token=lambda: "t", driver_cpus=0.5, has_gpus=True)
        reference = launcher.start(job())
        made = kube.objects["rayjobs/qtune-01abc-1"]
        launcher.state(reference)
        launcher.stop(reference, force=False)
        launcher.forget(job())
        asked = {tuple(line.split("/")[0].split()) for line in kube.asked}
    validator_of(crds, "RayJob").validate(made)
    assert "suspend" not in made["spec"]["rayClusterSpec"]
    verbs = {"GET": "get", "POST": "create", "DELETE": "delete"}
    rules = named(objects, "Role", "qtune-api")["rules"]
    allowed = {(verb, kind) for rule in rules for verb in rule["verbs"] for kind in rule["resources"]}
    assert {(verbs[method], kind) for method, kind in asked} == allowed


# --- names that the code has


@each_overlay
def test_variables_are_settings(folder: str) -> None:
    """Whatever begins with QTUNE_ is a setting; the rest is known to be somebody's."""
    objects = rendered(folder)
    names = {variable["name"] for container in containers(objects) for variable in container.get("env", ())}
    names |= set(settings_of(objects)) if folder in SERVICES else set()
    known = {f"QTUNE_{name.upper()}" for name in Settings.model_fields}
    assert names - known - FOREIGN == set()


@each_service
@pytest.mark.parametrize("name", ["qtune-api", "qtune-admin"])
def test_settings_are_good(folder: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod's own environment loads, with files where its volumes put them; the admin needs no service account."""
    objects = rendered(folder)
    (pod,) = pods(named(objects, "Deployment", name))
    (container,) = pod["spec"]["containers"]
    given = settings_of(objects) | {v["name"]: v.get("value", "postgresql://x/y") for v in container["env"]}
    (token,) = [m["mountPath"] for m in container["volumeMounts"] if m["name"] == "ray-token"]
    assert given["QTUNE_RAY_TOKEN_PATH"] == f"{token}/auth_token"
    for file in ("auth_token", "token", "namespace"):
        (tmp_path / file).write_text("x")
    given |= {"QTUNE_RAY_TOKEN_PATH": str(tmp_path / "auth_token"), "KUBERNETES_SERVICE_HOST": "10.0.0.1"}
    if (
        pod["spec"].get("serviceAccountName")
        and named(objects, "ServiceAccount", "qtune-api")["automountServiceAccountToken"]
    ):
        given["QTUNE_KUBE_ACCOUNT"] = str(tmp_path)
    for variable in [v for v in os.environ if v.startswith(("QTUNE_", "RAY_", "KUBERNETES_"))]:
        monkeypatch.delenv(variable)
    for variable, value in given.items():
        monkeypatch.setenv(variable, value)
    loaded = load_settings()
    assert loaded.needs_tokens
    assert str(loaded.data_root) in {m["mountPath"] for m in container["volumeMounts"]}
    assert loaded.database.startswith("sqlite" if folder.endswith("dev") else "postgresql")


@each_overlay
def test_commands_are_the_commands(folder: str) -> None:
    """`qtune` with a command that there is, in pods and as Ray's entrypoint."""
    objects = rendered(folder)
    called = [c["args"] for c in containers(objects) if c.get("args", [""])[0] == "qtune"]
    called += [found["spec"]["entrypoint"].split() for found in of_kind(objects, "RayJob")]
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert called
    assert {words[1] for words in called} <= set(commands)


def test_probes_ask_for_paths_that_are_there(tmp_path: Path) -> None:
    """The api's, and Prometheus'."""
    objects = rendered("overlays/prod")
    asked = {
        container[probe]["httpGet"]["path"]
        for container in containers(of_kind(objects, "Deployment"))
        for probe in ("startupProbe", "livenessProbe", "readinessProbe")
        if probe in container
    }
    asked |= {end["path"] for monitor in of_kind(objects, "ServiceMonitor") for end in monitor["spec"]["endpoints"]}
    assert asked >= {"/healthz", "/readyz"}
    assert asked <= {getattr(route, "path", "") for route in create_app(settings(tmp_path)).routes}


def test_the_jobs_of_the_examples_load() -> None:
    """The file itself, and as the ConfigMap carries it; its actors ask for the GPUs that are not there yet."""
    assert load_spec(ROOT / "oneshot" / "job.toml").engine.gpus_per_actor == 1
    objects = rendered("oneshot")
    (pod, *_) = pods(named(objects, "RayJob", "qtune-prune")["spec"]["rayClusterSpec"]["headGroupSpec"])
    data = named(objects, "ConfigMap", "qtune-job")["data"]
    assert data["job.toml"] == (ROOT / "oneshot" / "job.toml").read_text()
    (mount,) = [m for m in pod["spec"]["containers"][0]["volumeMounts"] if m["name"] == "job"]
    entrypoint = named(objects, "RayJob", "qtune-prune")["spec"]["entrypoint"]
    assert entrypoint == f"qtune run {mount['mountPath']}/job.toml"


def test_the_dashboard_shows_metrics_that_there_are(tmp_path: Path) -> None:
    """Every name in its queries is one that a server tells."""
    database = open_database(f"sqlite:///{tmp_path}/x.db")
    upgrade(database)
    metrics = Metrics(JobStore(database))
    metrics.note_request(Answered("GET", "/", 200, 0.1))
    told = set(re.findall(r"^([a-z_]+)", metrics.text().decode(), re.MULTILINE))
    dashboard = json.loads(named(rendered("overlays/prod"), "ConfigMap", "qtune-dashboard")["data"]["qtune.json"])
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"\b((?:qtune|process)_[a-z_]+)\{", query)}
    assert len(asked) > 8
    assert asked <= told


# --- what must agree


@each_overlay
def test_images_agree(folder: str) -> None:
    """With each other, with this version, and with what the Dockerfile builds."""
    found = [container["image"] for container in containers(rendered(folder))]
    assert set(found) <= IMAGES
    dockerfile = REPO / "Dockerfile"
    if dockerfile.exists():
        targets = set(re.findall(r"^FROM \S+ AS (\S+)", dockerfile.read_text(), re.MULTILINE))
        assert {name.removeprefix("qtune/").partition(":")[0] for name in found} <= targets
    kustomization = (ROOT / folder / "kustomization.yaml").read_text()
    assert {f"{n}:{t}" for n, t in re.findall(r"name: (qtune/\S+), newTag: ([^}]+)}", kustomization)} == set(found)


def test_the_overlay_of_the_page_works(tmp_path: Path) -> None:
    """As readers are told to write it: their images and settings everywhere, and nothing of ours is left."""
    objects = rendered_from_page(tmp_path)
    assert {c["image"].rpartition("/")[0] for c in containers(objects)} == {"registry.example.com/qtune"}
    assert settings_of(objects)["QTUNE_OUTPUTS_ROOT"] == "s3://mine/pruned"
    assert len(objects) == len(rendered("overlays/gpu"))


@each_overlay
def test_versions_of_ray_agree(folder: str) -> None:
    """With what the images install."""
    (found,) = of_kind(rendered(folder), "RayCluster", "RayJob")
    spec = found["spec"].get("rayClusterSpec", found["spec"])
    assert f"ray=={spec['rayVersion']}\n" in (REPO / "constraints.txt").read_text()


@each_service
def test_ports_and_names_agree(folder: str) -> None:
    """The api's port in settings, container, service, policies; the head's in its address, container, policies."""
    objects = rendered(folder)
    given = settings_of(objects)
    (api,) = containers([named(objects, "Deployment", "qtune-api")])
    service = named(objects, "Service", "qtune-api")
    assert (
        service["spec"]["selector"]
        == named(objects, "Deployment", "qtune-api")["spec"]["template"]["metadata"]["labels"]
    )
    (port,) = service["spec"]["ports"]
    (served,) = api["ports"]
    assert served["name"] == port["targetPort"]
    assert {given["QTUNE_PORT"], str(served["containerPort"]), str(port["port"])} == {str(Settings().port)}
    cluster = named(objects, "RayCluster", "qtune")
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    ports = {p["name"]: p["containerPort"] for p in head["ports"]}
    assert ports == {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    address = f"http://{cluster['metadata']['name']}-head-svc:{ports['dashboard']}"
    assert given["QTUNE_RAY_ADDRESS"] == ("" if folder.endswith("prod") else address)
    for ingress in of_kind(objects, "Ingress"):
        backend = ingress["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        assert backend == {"name": "qtune-api", "port": {"name": port["name"]}}
    for monitor in of_kind(objects, "ServiceMonitor"):
        assert monitor["spec"]["selector"]["matchLabels"] == service["metadata"]["labels"]
        assert monitor["spec"]["endpoints"][0]["port"] == port["name"]


@each_overlay
def test_secrets_are_told_of(folder: str) -> None:
    """Each that is referred to is made by a command of the page, and none is in a manifest."""
    objects = rendered(folder)
    assert of_kind(objects, "Secret") == []
    text = json.dumps(objects)
    found = set(re.findall(r'"secretName": "([^"]+)"', text))
    found |= set(re.findall(r'"(?:secretKeyRef|secretRef|credentials)": \{[^}]*"name": "([^"]+)"', text))
    page = (REPO / "docs" / "operations" / "kubernetes.md").read_text()
    assert found
    assert {name for name in found if f" {name} " not in page} == set()


# --- what is promised of clusters and pods


@each_overlay
def test_pods_are_restricted(folder: str) -> None:
    """As the namespace enforces: no root, no rights, no writing to the image, one user."""
    objects = rendered(folder)
    assert (
        named(objects, "Namespace", "qtune")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    )
    found = list(pods(objects))
    assert len(found) >= 3
    for pod in found:
        of_pod = pod["spec"]["securityContext"]
        assert of_pod["runAsNonRoot"]
        assert (of_pod["runAsUser"], of_pod["seccompProfile"]) == (UID, {"type": "RuntimeDefault"})
        assert pod["spec"]["enableServiceLinks"] is False
        for container in pod["spec"]["containers"]:
            context = container["securityContext"]
            assert context["readOnlyRootFilesystem"]
            assert (context["allowPrivilegeEscalation"], context["capabilities"]) == (False, {"drop": ["ALL"]})
            assert container["resources"]["limits"]["memory"]


@each_overlay
def test_ray_clusters(folder: str) -> None:
    """No work on the head, workers from 0, a token, an autoscaler that may run in the namespace."""
    (found,) = of_kind(rendered(folder), "RayCluster", "RayJob")
    spec = found["spec"].get("rayClusterSpec", found["spec"])
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert spec["authOptions"] == {"mode": "token", "secretName": "qtune-ray-token"}
    assert spec["autoscalerOptions"]["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert spec.get("suspend", False) is folder.endswith("prod")
    for group in spec["workerGroupSpecs"]:
        assert (group["minReplicas"], group["replicas"], group["maxReplicas"] > 0) == (0, 0, True)
    shapes = {group["groupName"]: _gpus(group) for group in spec["workerGroupSpecs"]}
    assert shapes == (
        {"workers": ("0", False)} if folder.endswith("dev") else {"gpu": ("1", True), "cpu": ("0", False)}
    )


def _gpus(group: Object) -> tuple[str, bool]:
    """Return the GPUs of a worker group, and whether it may run on nodes reserved for GPU work."""
    worker = group["template"]["spec"]
    limits = worker["containers"][0]["resources"]["limits"]
    return limits.get("nvidia.com/gpu", "0"), bool(worker.get("tolerations"))


@pytest.mark.parametrize("folder", [f for f in OVERLAYS if not f.endswith("dev")])
def test_cpu_work_has_workers_of_its_own(folder: str) -> None:
    """Drivers name the resource that the CPU group offers, and the GPU group does not offer it."""
    (found,) = of_kind(rendered(folder), "RayCluster", "RayJob")
    spec = found["spec"].get("rayClusterSpec", found["spec"])
    head = {v["name"]: v["value"] for v in spec["headGroupSpec"]["template"]["spec"]["containers"][0]["env"]}
    offered = {group["groupName"]: group["rayStartParams"].get("resources") for group in spec["workerGroupSpecs"]}
    assert offered["gpu"] is None
    assert json.loads(json.loads(offered["cpu"])) == {head[CPU_NODES]: 1}


def _sources(objects: list[Object], component: str, port: int) -> set[str]:
    """Return the labels of components, or namespaces, that may reach a port of a pod."""
    found: set[str] = set()
    for policy in of_kind(objects, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        if component not in _components(selector):
            continue
        for rule in policy["spec"].get("ingress", ()):
            if all(p["port"] != port for p in rule.get("ports", ({"port": port},))):
                continue
            for peer in rule["from"]:
                namespace = peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")
                found |= {namespace} if namespace else _components(peer["podSelector"])
    return found


def _components(selector: Object) -> set[str]:
    label = "app.kubernetes.io/component"
    found = {value for key, value in selector.get("matchLabels", {}).items() if key == label}
    return found.union(*(set(e["values"]) for e in selector.get("matchExpressions", ()) if e["key"] == label))


@each_overlay
def test_who_reaches_what(folder: str) -> None:
    """Nothing by default; Ray's ports from Ray alone, but the job port: from the api, or who takes its place."""
    objects = rendered(folder)
    closed = named(objects, "NetworkPolicy", "nothing-by-default")["spec"]
    assert closed == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ray = {"ray-head", "ray-worker"}
    for port in (6379, 10001, 52365):
        assert _sources(objects, "ray-head", port) == ray
    more = {
        "overlays/dev": {"api"},
        "overlays/gpu": {"api"},
        "overlays/prod": {"api", "kuberay-system"},
        "oneshot": {"submitter", "kuberay-system"},
    }
    assert _sources(objects, "ray-head", 8265) == ray | more[folder]
    assert _sources(objects, "ray-worker", 8265) == ray
    assert _sources(objects, "api", 8420) == ({"ingress-nginx", "monitoring"} if folder.endswith("prod") else set())
    labels = {pod["metadata"]["labels"]["app.kubernetes.io/component"] for pod in pods(objects)}
    meant = set().union(*(_components(p["spec"]["podSelector"]) for p in of_kind(objects, "NetworkPolicy")))
    assert meant <= labels | {"api"}


def test_prod_outlives_a_node() -> None:
    """Two servers at least, on several nodes; none goes before another one is ready; the Job alone migrates."""
    objects = rendered("overlays/prod")
    spec = named(objects, "Deployment", "qtune-api")["spec"]
    assert "replicas" not in spec
    assert spec["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert {c["topologyKey"] for c in spec["template"]["spec"]["topologySpreadConstraints"]} == {
        "kubernetes.io/hostname",
        "topology.kubernetes.io/zone",
    }
    assert named(objects, "HorizontalPodAutoscaler", "qtune-api")["spec"]["minReplicas"] == 2
    labels = spec["template"]["metadata"]["labels"]
    assert named(objects, "PodDisruptionBudget", "qtune-api")["spec"]["selector"]["matchLabels"] == labels
    assert named(objects, "PersistentVolumeClaim", "qtune-data")["spec"]["accessModes"] == ["ReadWriteMany"]
    assert settings_of(objects)["QTUNE_MIGRATE_AT_START"] == "false"


def test_only_the_kuberay_launcher_has_rights() -> None:
    """Where the cluster stays, the server has no account at all."""
    for folder in ("overlays/dev", "overlays/gpu"):
        objects = rendered(folder)
        assert of_kind(objects, "Role", "RoleBinding", "ClusterRole") == []
        assert named(objects, "ServiceAccount", "qtune-api")["automountServiceAccountToken"] is False
    prod = rendered("overlays/prod")
    (subject,) = named(prod, "RoleBinding", "qtune-api")["subjects"]
    assert (subject["name"], subject["namespace"]) == ("qtune-api", "qtune")
