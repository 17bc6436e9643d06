"""Where a server is, and who asks: an URL and a token that belong together.

A token opens the server to whoever sees it, so one never goes over plain HTTP to another machine unless that is said.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Self
from urllib.parse import urlsplit

from qtune_service.errors import SettingsError

DEFAULT_URL = "http://127.0.0.1:8420"
API = "/api/v1"


@dataclass(frozen=True, slots=True)
class Address:
    """A server, and a token for it."""

    url: str
    """Without a slash at its end."""
    token: str | None = field(default=None, repr=False)

    @classmethod
    def checked(cls, url: str, token: str | None = None, *, plain_http: bool = False) -> Self:
        """Raises SettingsError for what is no server's URL, or would show the token to others on the way."""
        clean = url.strip().rstrip("/").removesuffix(API)
        scheme, host = _parts(clean)
        if token is not None:
            token = token.strip()
            if not (token.isascii() and token.isprintable() and " " not in token and token):
                raise SettingsError("the token is none: it is empty, or has spaces or other signs in it")
        if token is not None and scheme == "http" and not is_loopback(host) and not plain_http:
            raise SettingsError(
                f"{clean} is plain HTTP to another machine: the token could be read on the way",
                "Use https://, or an SSH tunnel; or, where you trust the network, --plain-http (plain_http=True).",
            )
        return cls(clean, token)

    @property
    def is_local(self) -> bool:
        """Whether it is this machine."""
        return is_loopback(_parts(self.url)[1])


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: two URLs with the same are one server's."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or (443 if parts.scheme == "https" else 80)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _parts(url: str) -> tuple[str, str]:
    """Scheme and host. Raises SettingsError."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"{url!r} is no URL: {error}", f"For example {DEFAULT_URL}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise SettingsError(f"{url!r} is no URL of a server", f"For example {DEFAULT_URL}.")
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError("a server's URL has no user, query or fragment", "Tokens are given apart from it.")
    return parts.scheme, parts.hostname.lower()
