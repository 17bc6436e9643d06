"""Settings of the service: environment variables that begin with QTUNE_, checked when it starts.

Lists are separated as paths are on the platform (`:` on Linux). Lower layers get values, never this object.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from qtune_service.errors import SettingsError


def _paths(value: Any) -> Any:
    return [part for part in value.split(os.pathsep) if part] if isinstance(value, str) else value


PathList = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_paths)]
Count = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """What the owner of a server decides."""

    model_config = SettingsConfigDict(env_prefix="QTUNE_", frozen=True, extra="ignore")

    data_root: Annotated[Path, AfterValidator(Path.absolute)] = Path("~/.local/share/qtune").expanduser()
    """Folder of the server: database, logs, and outputs of jobs that name no place."""
    database_url: str = ""
    """`sqlite:///PATH` or `postgresql://...`; by default a file in data_root."""
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

    datasets_root: str = ""
    """Folder or URI of uploaded datasets; by default `datasets` in data_root. Where jobs run elsewhere, a place that
    they can read."""
    max_upload_bytes: Count = 64 << 30
    """Size of the largest file that may be uploaded."""

    @model_validator(mode="after")
    def _roots_are_absolute(self) -> Settings:
        for name in ("allowed_inputs", "allowed_outputs"):
            for root in getattr(self, name):
                if "://" not in root and not Path(root).is_absolute():
                    raise ValueError(f"{name}: {root!r} is neither an absolute path nor a URI")
        root = self.datasets_root
        if root and "://" not in root and not Path(root).is_absolute():
            raise ValueError(f"datasets_root: {root!r} is neither an absolute path nor a URI")
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
    """From the environment; `changes` (flags) come first. Raises SettingsError that names each variable."""
    try:
        return Settings(**{name: value for name, value in changes.items() if value is not None})
    except ValidationError as error:
        lines = [f"  QTUNE_{str(e['loc'][0]).upper() if e['loc'] else '*'}: {e['msg']}" for e in error.errors()]
        raise SettingsError("settings are wrong\n" + "\n".join(lines), "See docs/service.md.") from error
