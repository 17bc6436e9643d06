"""Find the AWS keys of this process: of the environment, of the role of a pod, or of a profile by botocore.

Filesystems of pyarrow find keys themselves and do not show them, so requests that pyarrow cannot send need this. Roles
of pods are those of EKS and ECS: a web identity token (IRSA) that is exchanged at STS, or an agent at a local address.
Profiles and roles of machines need botocore, which is used if it is installed.
"""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

RENEW_S = 300.0
"""Keys are renewed so long before they expire."""
TIMEOUT_S = 10.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys that sign requests."""

    key_id: str
    secret: str
    token: str = ""
    expires_at_s: float = float("inf")
    """In seconds since 1970."""


def keys_of_environment() -> Keys | None:
    """Return the keys in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."""
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    return Keys(key_id, secret, os.environ.get("AWS_SESSION_TOKEN", "")) if key_id and secret else None


def find_keys(region: str) -> Keys | None:
    """Return the keys of this process, None if there are none. Keys of roles are kept until they expire."""
    return keys_of_environment() or _kept.get(region)


class _KeptKeys:
    def __init__(self) -> None:
        self._keys: Keys | None = None
        self._lock = threading.Lock()

    def get(self, region: str) -> Keys | None:
        with self._lock:
            if self._keys is None or self._keys.expires_at_s < time.time() + RENEW_S:
                sources: tuple[Callable[[], Keys | None], ...] = (
                    functools.partial(_of_web_identity, region),
                    _of_container,
                    _of_botocore,
                )
                self._keys = next(filter(None, map(_call, sources)), None)
            return self._keys


_kept = _KeptKeys()


def _call(source: Callable[[], Keys | None]) -> Keys | None:
    """Return the keys of a source. None where it fails: the caller has a way without them."""
    try:
        return source()
    except Exception as error:  # noqa: BLE001 - an edge: the next source, or a write without a condition, may work
        _warn_once(f"{type(error).__name__}: {error}")
        return None


@functools.lru_cache(maxsize=100)
def _warn_once(problem: str) -> None:
    _log.warning("no keys for conditional writes: %s", problem)


def _of_web_identity(region: str) -> Keys | None:
    token_file, role = os.environ.get("AWS_WEB_IDENTITY_TOKEN_FILE"), os.environ.get("AWS_ROLE_ARN")
    if not token_file or not role:
        return None
    import httpx

    url = os.environ.get("AWS_ENDPOINT_URL_STS") or f"https://sts.{region}.amazonaws.com"
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "Version": "2011-06-15",
        "RoleArn": role,
        "RoleSessionName": os.environ.get("AWS_ROLE_SESSION_NAME") or f"qtune-{os.getpid()}",
        "WebIdentityToken": Path(token_file).read_text().strip(),
    }
    text = httpx.post(url, data=form, timeout=TIMEOUT_S).raise_for_status().text
    names = ("AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration")
    found = {name: re.search(f"<{name}>([^<]+)</{name}>", text) for name in names}
    return _keys(**{name: match[1] for name, match in found.items() if match})


def _of_container() -> Keys | None:
    url, path = (
        os.environ.get("AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        os.environ.get("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    )
    url = url or (f"http://169.254.170.2{path}" if path else "")
    if not url:
        return None
    import httpx

    token_file = os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE")
    token = Path(token_file).read_text().strip() if token_file else os.environ.get("AWS_CONTAINER_AUTHORIZATION_TOKEN")
    headers = {"Authorization": token} if token else {}
    body = httpx.get(url, headers=headers, timeout=TIMEOUT_S, trust_env=False).raise_for_status().json()
    return _keys(body["AccessKeyId"], body["SecretAccessKey"], body["Token"], body["Expiration"])


def _keys(AccessKeyId: str, SecretAccessKey: str, SessionToken: str, Expiration: str) -> Keys:  # noqa: N803 - of AWS
    return Keys(AccessKeyId, SecretAccessKey, SessionToken, datetime.fromisoformat(Expiration).timestamp())


def _of_botocore() -> Keys | None:
    credentials = _botocore_credentials()
    keys = None if credentials is None else credentials.get_frozen_credentials()  # renews what has expired
    return None if keys is None else Keys(keys.access_key, keys.secret_key, keys.token or "", time.time() + 2 * RENEW_S)


@functools.lru_cache(maxsize=1)
def _botocore_credentials() -> Any:
    try:
        from botocore.session import Session
    except ImportError:  # an optional package
        return None
    return Session().get_credentials()
