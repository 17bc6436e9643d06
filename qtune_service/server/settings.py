"""Settings of the service: environment variables that begin with QTUNE_, checked when it starts.

Lists are separated as paths are on the platform (`:` on Linux). Lower layers get values, never this object. A setting
may also be a file of its name below /run/secrets, as containers get secrets: `qtune_database_url`. The variable wins.
"""

from __future__ import annotations

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qtune_service.errors import SettingsError

_SEPARATOR = re.compile(rf"{re.escape(os.pathsep)}(?!//)")


def _paths(value: Any) -> Any:
    """Parts of a list; the colon of a URI is none of its separators."""
    return [part for part in _SEPARATOR.split(value) if part] if isinstance(value, str) else value


SECRETS = Path("/run/secrets")
PathList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_paths)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """What the owner of a server decides."""

    model_config = SettingsConfigDict(env_prefix="QTUNE_", frozen=True, extra="ignore")

    data_root: Annotated[Path, AfterValidator(Path.absolute)] = Path("~/.local/share/qtune").expanduser()
    """Folder of the server: database, logs, and outputs of jobs that name no place."""
    shared_data_root: bool = False
    """Start although every user of the machine may write to data_root and this cannot be changed: for volumes of
    containers, which other users do not reach."""
    database_url: str = ""
    """`sqlite:///PATH` or `postgresql://...`; by default a file in data_root."""
    migrate_at_start: bool = True
    """Bring the database's schema to this version's when the server starts. Without, it only checks, and `qtune
    migrate` comes before: so one does it where many start, with rights that servers need not have."""
    host: str = "127.0.0.1"
    """Address to listen on. Others than this machine's own need API tokens."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8420
    """Port to listen on."""
    insecure: bool = False
    """Let everybody in who reaches the address."""
    require_tokens: bool = False
    """Want API tokens on this machine's own addresses too: behind a proxy, or where several people log in."""
    session_hours: Count = 12
    """How long a browser stays signed in."""
    max_running_jobs: Count = 1
    """Jobs that run at a time; others wait in the queue."""
    presigned_downloads: bool = False
    """Send clients that download files of outputs on `s3://` to the store itself, by URLs that hold for 15 minutes; for
    stores that clients can reach. Needs AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; without, the server hands on."""
    allowed_inputs: PathList = ()
    """Folders and URI prefixes that jobs may read; none: nothing."""
    allowed_outputs: PathList = ()
    """Folders and URI prefixes that jobs may write to, beside data_root."""
    allowed_models: PathList = ()
    """Folders of models, and hub ids or prefixes of them that end in `/`; none: no model at all."""
    allow_remote_code: bool = False
    """Let jobs run code that comes with a model."""
    outputs_root: str = ""
    """Folder or URI for outputs of jobs that name no place; by default `outputs` in data_root. With the ray launcher
    it must be one that the cluster's nodes reach too."""
    launcher: Literal["local", "ray", "kuberay"] = "local"
    """Where new jobs run: `local`, a child process of this machine; `ray`, a cluster; `kuberay`, a cluster for each job
    on Kubernetes."""
    ray_address: str = ""
    """Dashboard of the Ray cluster, `http://HEAD:8265`."""
    ray_token_path: Path | None = None
    """File with the cluster's token; by default RAY_AUTH_TOKEN, or the file that RAY_AUTH_TOKEN_PATH names."""
    ray_command: str = "qtune"
    """How the command is called on the cluster's nodes, as a shell understands it."""
    ray_driver_cpus: Annotated[float, Field(ge=0)] = 0
    """CPUs that a job's driver reserves on the cluster; with 0 it runs on the head node."""
    ray_has_gpus: bool = False
    """The cluster has GPUs though none may be up when a job begins, as with autoscaling from 0: jobs ask for them all
    the same."""
    kube_cluster: str = ""
    """RayCluster whose spec each job's own gets, with the launcher `kuberay`. Keep it suspended."""
    kube_address: str = ""
    """Kubernetes API; by default that of the cluster that the server runs in."""
    kube_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Folder of the service account: `token`, `namespace`, `ca.crt`."""

    @model_validator(mode="after")
    def _cluster_is_named(self) -> Settings:
        if self.launcher == "ray" and not self.ray_address:
            raise ValueError("launcher 'ray' needs QTUNE_RAY_ADDRESS, http://HEAD:8265")
        parts = urlsplit(self.ray_address)
        if self.ray_address and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("ray_address is not of the form http://HEAD:8265")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("ray_address holds more than an address; the token goes into a file, see ray_token_path")
        if self.ray_token_path is not None and not self.ray_token_path.is_file():
            raise ValueError(f"ray_token_path: there is no file {str(self.ray_token_path)!r}")
        return self

    @model_validator(mode="after")
    def _kubernetes_is_there(self) -> Settings:
        if self.launcher == "kuberay" and not self.kube_cluster:
            raise ValueError("launcher 'kuberay' needs QTUNE_KUBE_CLUSTER, the name of a RayCluster")
        if self.kube_cluster and not re.fullmatch(r"https?://[^/?#@]+/?", self.kubernetes):
            raise ValueError("outside of Kubernetes QTUNE_KUBE_ADDRESS is needed, https://HOST:PORT")
        for name in ("token", "namespace") if self.kube_cluster else ():
            if not (self.kube_account / name).is_file():
                raise ValueError(f"kube_account: there is no file {str(self.kube_account / name)!r}")
        return self

    datasets_root: str = ""
    """Folder or URI of uploaded datasets; by default `datasets` in data_root. Where jobs run elsewhere, a place that
    they can read."""
    max_upload_bytes: Count = 64 << 30
    """Size of the largest file that may be uploaded."""
    child_memory_bytes: Annotated[int, Field(ge=512 << 20)] = 3 << 29
    """Memory that each process may take which evaluates conditions, reads outputs or makes previews. Drivers of jobs
    have no such limit."""
    max_questions: Count = 2
    """Questions to outputs that are answered at a time, each by a process of its own; others wait up to a minute."""
    child_environment: PathList = ()
    """Names of environment variables that child processes and local drivers get beside the usual ones; `MY_*` stands
    for all that begin so. The server's other variables, tokens and passwords among them, stay with the server."""

    @model_validator(mode="after")
    def _roots_are_absolute(self) -> Settings:
        named = {"allowed_inputs": self.allowed_inputs, "allowed_outputs": self.allowed_outputs}
        single = {"outputs_root": self.outputs_root, "datasets_root": self.datasets_root}
        for name, roots in {**named, **{name: (root,) for name, root in single.items() if root}}.items():
            for root in roots:
                if "://" not in root and not Path(root).is_absolute():
                    raise ValueError(f"{name}: {root!r} is neither an absolute path nor a URI")
        return self

    @model_validator(mode="after")
    def _is_open_or_not(self) -> Settings:
        if self.insecure and self.require_tokens:
            raise ValueError("insecure and require_tokens contradict each other")
        return self

    @property
    def database(self) -> str:
        """URL of the database."""
        return self.database_url or f"sqlite:///{self.data_root}/qtune.db"

    @property
    def datasets(self) -> str:
        """Folder or URI of uploaded datasets."""
        return self.datasets_root or str(self.data_root.absolute() / "datasets")

    @property
    def outputs(self) -> str:
        """Where outputs of jobs go that name no place."""
        return self.outputs_root.rstrip("/") or f"{self.data_root}/outputs"

    @property
    def kubernetes(self) -> str:
        """Address of the Kubernetes API, or nothing where there is none."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        shown = f"[{host}]" if ":" in host else host
        return self.kube_address or (f"https://{shown}:{port or 443}" if host else "")

    def ray_token(self) -> str | None:
        """The cluster's token as it is now, or None where there is none. Raises SettingsError."""
        path = self.ray_token_path or os.environ.get("RAY_AUTH_TOKEN_PATH")
        if self.ray_token_path is None and (token := os.environ.get("RAY_AUTH_TOKEN")):
            return token.strip()
        if path is None:
            return None
        try:
            return Path(path).read_text(encoding="utf-8").strip() or None
        except OSError as error:
            raise SettingsError(f"the cluster's token cannot be read: {error}", "See QTUNE_RAY_TOKEN_PATH.") from error

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_tokens(self) -> bool:
        """Whether every request needs an API token."""
        return self.require_tokens or (not self.is_local and not self.insecure)


def load_settings(**changes: Any) -> Settings:
    """From the environment and files of secrets; `changes` (flags) come first. Raises SettingsError."""
    if SECRETS.is_dir():
        changes.setdefault("_secrets_dir", SECRETS)
    try:
        return Settings(**{name: value for name, value in changes.items() if value is not None})
    except OSError as error:
        raise SettingsError(f"a file of secrets cannot be read: {error}", "User 10001 must read it.") from error
    except ValidationError as error:
        lines = [f"  QTUNE_{str(e['loc'][0]).upper() if e['loc'] else '*'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("settings are wrong\n" + "\n".join(lines), "See docs/service.md.") from error
