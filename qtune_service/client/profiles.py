"""Find the server and the token: from arguments, the environment, or `config.toml`.

    default = "lab"
    [profiles.lab]
    url = "https://qtune.example.org"
    token = "qtune_..."

A token is sent only to its own server: a profile's token to the profile's URL, QTUNE_TOKEN to QTUNE_URL, or to the
requested server if QTUNE_URL is not set.
"""

from __future__ import annotations

import json
import os
import tomllib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qtune_service.client.transport import DEFAULT_URL, Address, origin
from qtune_service.errors import SettingsError

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]


class Profile(BaseModel):
    """A server in the config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    token: str | None = Field(default=None, repr=False)
    plain_http: bool = False


class Profiles(BaseModel):
    """The content of the config file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: Name | None = None
    profiles: dict[Name, Profile] = {}


def find_address(
    url: str | None = None,
    token: str | None = None,
    *,
    profile: str | None = None,
    plain_http: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Address:
    """Return the address. Arguments win over a named profile, the environment, and the default profile."""
    path = config_path(environ)
    known = read_profiles(path)
    chosen = _named(known, profile, path) if profile is not None else None
    by_default = known.profiles.get(known.default) if known.default is not None else None
    env_url, env_token = environ.get("QTUNE_URL") or None, environ.get("QTUNE_TOKEN") or None
    url = url or (chosen.url if chosen else None) or env_url or (by_default.url if by_default else DEFAULT_URL)
    here = [p for p in (chosen, by_default, *known.profiles.values()) if p and origin(p.url) == origin(url)]
    from_env = env_token if env_url is None or origin(env_url) == origin(url) else None
    of_profiles = next((p.token for p in here if p.token), None)
    first, second = (of_profiles, from_env) if chosen is not None else (from_env, of_profiles)
    token = (first or second) if token is None else token
    return Address.checked(url, token, plain_http=plain_http or any(p.plain_http for p in here))


def config_path(environ: Mapping[str, str] = os.environ) -> Path:
    """Return `~/.config/qtune/config.toml`, or its path below XDG_CONFIG_HOME."""
    root = environ.get("XDG_CONFIG_HOME")
    return (Path(root) if root else Path.home() / ".config") / "qtune" / "config.toml"


def read_profiles(path: Path) -> Profiles:
    """Read the profiles; a missing file has none. Warns if others can read its tokens. Raises SettingsError."""
    try:
        found = Profiles.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return Profiles()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
    except ValidationError as error:  # values are not shown: one may be a token
        fields = ", ".join(".".join(map(str, e["loc"])) for e in error.errors(include_input=False))
        raise SettingsError(f"{path}: wrong fields: {fields}", "See docs/guides/client.md.") from None
    except ValueError as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    if any(profile.token for profile in found.profiles.values()) and path.stat().st_mode & 0o077:
        warnings.warn(f"others can read the tokens in {path}: chmod 600 {path}", stacklevel=2)
    return found


def save_profile(name: str, profile: Profile, path: Path) -> None:
    """Add or replace a profile and make it the default. The file gets mode 0600. Raises SettingsError."""
    known = read_profiles(path)
    try:
        new = Profiles(default=name, profiles={**known.profiles, name: profile})
    except ValidationError:
        raise SettingsError(f"{name!r} is not a valid profile name", "Use letters, digits, - and _.") from None
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_suffix(".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(_toml(new))
    fresh.replace(path)


def _named(known: Profiles, name: str, path: Path) -> Profile:
    if name not in known.profiles:
        there = ", ".join(sorted(known.profiles)) or "none"
        raise SettingsError(f"{path} has no profile {name!r}", f"Profiles: {there}. `qtune jobs login` creates one.")
    return known.profiles[name]


def _toml(profiles: Profiles) -> str:
    """Write TOML. Its strings and booleans are those of JSON."""
    lines = [f"default = {json.dumps(profiles.default)}"]
    for name, profile in profiles.profiles.items():
        lines.append(f"\n[profiles.{name}]")
        values = profile.model_dump(exclude_defaults=True).items()
        lines += [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in values]
    return "\n".join(lines) + "\n"
