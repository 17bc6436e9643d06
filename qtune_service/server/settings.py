"""Read the settings of the service from environment variables that begin with QTUNE_, and check them at the start.

Lists use the platform's separator of paths (`:` on Linux). A setting may also be a file below /run/secrets, where
containers get secrets, such as `qtune_database_url`. The variable has priority. Lower layers get values, never this
object.
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
    """Split a text into a list of paths and URIs, and keep the colon of a URI's scheme."""
    return [part for part in _SEPARATOR.split(value) if part] if isinstance(value, str) else value


SECRETS = Path("/run/secrets")
PathList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_paths)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Settings of the administrator."""

    model_config = SettingsConfigDict(env_prefix="QTUNE_", frozen=True, extra="ignore")

    data_root: Annotated[Path, AfterValidator(Path.absolute)] = Path("~/.local/share/qtune").expanduser()
    """Folder of the server: database, logs, and outputs of jobs without an output path."""
    shared_data_root: bool = False
    """Start even if every user of the machine can write to data_root and the server cannot change this. For volumes
    of containers, which other users cannot reach."""
    database_url: str = ""
    """`sqlite:///PATH` or `postgresql://...`. The default is a file in data_root."""
    migrate_at_start: bool = True
    """Migrate the database's schema when the server starts. With `false` it only checks the schema, and `qtune migrate`
    must run first. Use this for several servers, or for servers without the right to migrate."""
    host: str = "127.0.0.1"
    """Address to listen on. Addresses that other machines reach require API tokens."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8420
    """Port to listen on."""
    insecure: bool = False
    """Allow every client that reaches the address, without tokens."""
    require_tokens: bool = False
    """Require API tokens also on local addresses: behind a proxy, or on machines with several users."""
    session_hours: Count = 12
    """Hours until a browser must sign in again."""
    max_running_jobs: Count = 1
    """Number of concurrent jobs. Other jobs wait in the queue."""
    presigned_downloads: bool = False
    """Redirect downloads of outputs on `s3://` to the store, by URLs that are valid for 15 minutes. Clients must reach
    the store. Requires AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. Without them, the server relays."""
    allowed_inputs: PathList = ()
    """Folders and URI prefixes that jobs may read, also datasets of the hub: `hf://datasets/ORG/NAME`, or
    `hf://datasets/ORG/` for all of an organization. Jobs read them with the server's HF_TOKEN. Empty: none."""
    allowed_outputs: PathList = ()
    """Folders and URI prefixes that jobs may write to, in addition to data_root."""
    allowed_models: PathList = ()
    """Folders of models, hub ids, or prefixes of hub ids that end in `/`. Empty: no model."""
    allow_remote_code: bool = False
    """Allow jobs to run code: of models, custom engines and custom quadrant rules."""
    outputs_root: str = ""
    """Folder or URI for outputs of jobs without an output path. The default is `outputs` in data_root. With the ray
    launcher the cluster's nodes must reach it."""
    launcher: Literal["local", "ray", "kuberay"] = "local"
    """Where new jobs run: `local`, a child process of this machine; `ray`, a cluster; `kuberay`, a cluster per job on
    Kubernetes."""
    ray_address: str = ""
    """Dashboard of the Ray cluster, `http://HEAD:8265`."""
    ray_token_path: Path | None = None
    """File with the cluster's token. The default is RAY_AUTH_TOKEN, or the file of RAY_AUTH_TOKEN_PATH."""
    ray_command: str = "qtune"
    """Shell command for `qtune` on the cluster's nodes."""
    ray_driver_cpus: Annotated[float, Field(ge=0)] = 0
    """CPUs that a job's driver reserves on the cluster. With 0 it runs on the head node."""
    ray_has_gpus: bool = False
    """Jobs request GPUs even if none is up when they begin, as with autoscaling from 0."""
    kube_cluster: str = ""
    """RayCluster that is the template of each job's cluster, with the launcher `kuberay`. Keep it suspended."""
    kube_address: str = ""
    """Kubernetes API. The default is the API of the cluster in which the server runs."""
    kube_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """Folder of the service account: `token`, `namespace`, `ca.crt`."""

    @model_validator(mode="after")
    def _cluster_is_named(self) -> Settings:
        if self.launcher == "ray" and not self.ray_address:
            raise ValueError("launcher 'ray' requires QTUNE_RAY_ADDRESS, such as http://HEAD:8265")
        parts = urlsplit(self.ray_address)
        if self.ray_address and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError("ray_address must have the form http://HEAD:8265")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError("ray_address must be an address only. Put the token into a file, see ray_token_path")
        if self.ray_token_path is not None and not self.ray_token_path.is_file():
            raise ValueError(f"ray_token_path: there is no file {str(self.ray_token_path)!r}")
        return self

    @model_validator(mode="after")
    def _kubernetes_is_there(self) -> Settings:
        if self.launcher == "kuberay" and not self.kube_cluster:
            raise ValueError("launcher 'kuberay' requires QTUNE_KUBE_CLUSTER, the name of a RayCluster")
        if self.kube_cluster and not re.fullmatch(r"https?://[^/?#@]+/?", self.kubernetes):
            raise ValueError("QTUNE_KUBE_ADDRESS is required outside of Kubernetes, such as https://HOST:PORT")
        for name in ("token", "namespace") if self.kube_cluster else ():
            if not (self.kube_account / name).is_file():
                raise ValueError(f"kube_account: there is no file {str(self.kube_account / name)!r}")
        return self

    datasets_root: str = ""
    """Folder or URI of uploaded datasets. The default is `datasets` in data_root. If jobs run on other machines, these
    must be able to read it."""
    max_upload_bytes: Count = 64 << 30
    """Size limit of an uploaded file."""
    child_memory_bytes: Annotated[int, Field(ge=512 << 20)] = 3 << 29
    """Memory limit of each process that evaluates conditions, reads outputs or makes previews. Drivers of jobs have no
    such limit."""
    max_questions: Count = 2
    """Number of concurrent output queries, each in its own process. Others wait up to a minute."""
    child_environment: PathList = ()
    """Names of environment variables that child processes and local drivers get in addition to the defaults. `MY_*`
    matches a prefix. Other variables of the server, such as tokens and passwords, are not passed on."""

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
        """Return the URL of the database."""
        return self.database_url or f"sqlite:///{self.data_root}/qtune.db"

    @property
    def datasets(self) -> str:
        """Return the folder or URI of uploaded datasets."""
        return self.datasets_root or str(self.data_root.absolute() / "datasets")

    @property
    def outputs(self) -> str:
        """Return the folder or URI for outputs of jobs that give no path."""
        return self.outputs_root.rstrip("/") or f"{self.data_root}/outputs"

    @property
    def kubernetes(self) -> str:
        """Return the address of the Kubernetes API, or an empty text where there is none."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        shown = f"[{host}]" if ":" in host else host
        return self.kube_address or (f"https://{shown}:{port or 443}" if host else "")

    def ray_token(self) -> str | None:
        """Read the cluster's token, or return None where there is none. Raise SettingsError."""
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
        """Return whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def needs_tokens(self) -> bool:
        """Return whether every request needs an API token."""
        return self.require_tokens or (not self.is_local and not self.insecure)


def load_settings(**changes: Any) -> Settings:
    """Read the settings. `changes` (flags) have priority over environment and secrets. Raise SettingsError."""
    if SECRETS.is_dir():
        changes.setdefault("_secrets_dir", SECRETS)
    try:
        return Settings(**{name: value for name, value in changes.items() if value is not None})
    except OSError as error:
        raise SettingsError(f"a secrets file cannot be read: {error}", "User 10001 must be able to read it.") from error
    except ValidationError as error:
        lines = [f"  QTUNE_{str(e['loc'][0]).upper() if e['loc'] else '*'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("settings are wrong\n" + "\n".join(lines), "See docs/reference/settings.md.") from error
