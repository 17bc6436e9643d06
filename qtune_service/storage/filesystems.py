"""Resolve paths and URIs to pyarrow filesystems, retry calls, explain failures, and presign S3 URLs.

Supported are local paths, `s3://`, `gs://`, `hdfs://`, datasets of the Hugging Face hub (hub.py), and other schemes
through fsspec. Arrow's S3 client does not read AWS_ENDPOINT_URL, so its options are built here.

Calls are retried with jitter after transient failures (timeouts, throttling, 5xx). Other failures become a StorageError
with a hint.

Presigned URLs (Signature Version 4 in the query) are valid for some minutes. pyarrow cannot presign, and botocore is a
dependency of 30 MB for forty lines of HMAC. Downloads use the keys of the environment (AWS_ACCESS_KEY_ID, ...) alone,
and conditional writes (conditional.py) those of roles too. Without keys there is no URL.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar, cast
from urllib.parse import parse_qsl, quote, unquote, urlsplit

import pyarrow as pa
import pyarrow.fs as pafs
import stamina

from qtune_service.errors import StorageError
from qtune_service.storage.aws_keys import find_keys, keys_of_environment
from qtune_service.storage.hub_uri import HubUri, of_web_page

T = TypeVar("T")
ATTEMPTS = 7
"""Attempts of a call. With pauses of 0.2 to 5 s they bridge an outage of ten seconds."""
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+)://")
_S3_OPTIONS = {"endpoint_override", "region", "scheme", "anonymous"}
_TRANSIENT = re.compile(
    r"NETWORK_CONNECTION|SLOW_DOWN|THROTTL|SERVICE_UNAVAILABLE|INTERNAL_FAILURE|REQUEST_TIMEOUT|REQUEST_TIME_TOO"
    r"|HTTP status 5\d\d|HTTP 5\d\d|curlCode|timed? ?out|temporarily|Connection reset",
    re.IGNORECASE,
)


class TransientError(OSError):
    """A failure that may pass. `wait_s`: the pause that the server requested, None for an increasing one."""

    def __init__(self, message: str, hint: str = "", wait_s: float | None = None) -> None:
        super().__init__(message, hint, wait_s)
        self.message, self.hint, self.wait_s = message, hint, wait_s

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Location:
    """A resolved path or URI. `writes`: how a file becomes visible atomically."""

    uri: str
    filesystem: pafs.FileSystem
    path: str
    writes: Literal["rename", "put", "move"]

    @property
    def is_local(self) -> bool:
        """Return whether the path is on a local disk."""
        return self.writes == "rename"

    @property
    def is_hub(self) -> bool:
        """Return whether the path is in a dataset of the Hugging Face hub."""
        return self.uri[:5].lower() == "hf://"


# --- paths and URIs


def resolve(uri: str) -> Location:
    """Find the filesystem of a path or URI. Raises StorageError for an unknown scheme or option."""
    match = _SCHEME.match(uri)
    if match is None:
        return Location(uri, _local(), str(Path(uri).expanduser().absolute()), "rename")
    scheme = match.group(1).lower()
    if scheme == "file":
        return Location(uri, _local(), unquote(urlsplit(uri).path), "rename")
    if scheme in ("s3", "s3a", "s3n"):
        return _resolve_s3(uri)
    if scheme == "hf":
        return _resolve_hub(uri)
    if (page := of_web_page(uri)) is not None:
        raise StorageError(f"{display(uri)} is a page of the hub, not data", f"Read the dataset as {page}.")
    try:
        if scheme in ("gs", "gcs", "hdfs", "viewfs", "abfs", "abfss"):
            filesystem, path = pafs.FileSystem.from_uri(uri)
            return Location(uri, filesystem, path, "move" if scheme in ("hdfs", "viewfs") else "put")
        return _resolve_fsspec(uri, scheme)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StorageError(f"cannot use {display(uri)}: {first_line(error)}", _SUPPORTED) from error


_SUPPORTED = (
    "Supported: local paths, file://, s3://, gs://, hdfs://, hf://datasets/, and schemes of an installed fsspec "
    "filesystem."
)


def display(uri: str) -> str:
    """Return the URI without its options, for messages."""
    return uri.split("?", 1)[0] if _SCHEME.match(uri) else uri


def join(uri: str, *parts: str) -> str:
    """Append path segments before the options of a URI."""
    base, mark, options = uri.partition("?") if _SCHEME.match(uri) else (uri, "", "")
    return "/".join([base.rstrip("/") or "/", *parts]).replace("//", "/", 1 if base == "/" else 0) + mark + options


@functools.lru_cache(maxsize=1)
def _local() -> pafs.FileSystem:
    return pafs.LocalFileSystem()


def _resolve_s3(uri: str) -> Location:
    client = s3_client(uri)
    path = client.bucket + urlsplit(uri, allow_fragments=False).path
    return Location(uri, _s3(client), path.rstrip("/"), "put")


def s3_client(uri: str) -> S3Client:
    """Return the S3 client of a URI and the environment. Raises StorageError."""
    parts = urlsplit(uri, allow_fragments=False)
    options = dict(parse_qsl(parts.query))
    unknown = sorted(set(options) - _S3_OPTIONS)
    if unknown or "@" in parts.netloc or not parts.netloc:
        what = f"unknown option {', '.join(unknown)}" if unknown else "a URI is s3://BUCKET/KEY"
        hint = f"Options: {', '.join(sorted(_S3_OPTIONS))}. Credentials come from the environment, never from a URI."
        raise StorageError(f"cannot use {display(uri).rpartition('@')[2]}: {what}", hint)
    env = os.environ
    endpoint = options.get("endpoint_override") or env.get("AWS_ENDPOINT_URL_S3") or env.get("AWS_ENDPOINT_URL") or ""
    region = options.get("region") or env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION") or ""
    scheme = options.get("scheme") or (urlsplit(endpoint).scheme if "://" in endpoint else "https")
    anonymous = options.get("anonymous", "").lower() in ("1", "true", "yes")
    return S3Client(
        bucket=parts.netloc,
        endpoint=endpoint.split("://")[-1].rstrip("/"),
        scheme=scheme,
        region=region,
        anonymous=anonymous,
        identity="|".join(env.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE")),
    )


@dataclass(frozen=True, slots=True)
class S3Client:
    """Cache key of an S3 client. New credentials in the environment change `identity`."""

    bucket: str
    endpoint: str
    scheme: str
    region: str
    anonymous: bool
    identity: str


@functools.lru_cache(maxsize=32)
def _s3(client: S3Client) -> pafs.FileSystem:
    region = client.region
    if not region and not client.endpoint:
        where = f"s3://{client.bucket}"
        region = retrying(where, "find the region of", lambda: pafs.resolve_s3_region(client.bucket))
    make = cast("Callable[..., pafs.FileSystem]", pafs.S3FileSystem)  # its stubs lag behind
    return make(
        region=region or "us-east-1",
        endpoint_override=client.endpoint or None,
        scheme=client.scheme,
        anonymous=client.anonymous,
        connect_timeout=10,
        request_timeout=60,
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=2),
        allow_delayed_open=True,  # small objects in one PUT
    )


def _resolve_hub(uri: str) -> Location:
    at = HubUri.parse(uri)
    from qtune_service.storage import hub  # the library takes a second to import

    return Location(uri, hub.filesystem(), str(at).removeprefix("hf://"), "put")


def _resolve_fsspec(uri: str, scheme: str) -> Location:
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]

        bridged, path = url_to_fs(uri)
    except ImportError as error:
        hint = f"Install fsspec and its filesystem of {scheme}://. {_SUPPORTED}"
        raise StorageError(f"cannot use {display(uri)}: {first_line(error)}", hint) from error
    handler = cast("Callable[[Any], Any]", pafs.FSSpecHandler)(bridged)
    return Location(uri, pafs.PyFileSystem(handler), path, "put")


def uri_of(base: Location, path: str) -> str:
    """Convert a path listed by the filesystem of `base` to a URI. Local files become plain paths."""
    match = _SCHEME.match(base.uri)
    if match is None or base.is_local:
        return path
    netloc = urlsplit(base.uri).netloc if base.writes == "move" else ""
    _, mark, options = base.uri.partition("?")
    return match.group(0) + netloc + path + mark + options


# --- failures


def retrying(uri: str, action: str, call: Callable[[], T]) -> T:
    """Run `call`, and retry transient failures. Permanent failures raise StorageError."""
    try:
        for attempt in stamina.retry_context(
            on=_is_transient, attempts=ATTEMPTS, timeout=120, wait_initial=0.2, wait_max=5, wait_jitter=0.5
        ):
            with attempt:
                return call()
    except StorageError:
        raise
    except TransientError as error:
        raise StorageError(error.message, error.hint) from error
    except OSError as error:
        raise explain(error, uri, action) from error
    raise AssertionError("unreachable: the last attempt raises")


def _is_transient(error: Exception) -> bool | float:
    """Return whether a call is repeated, or the seconds until then."""
    if isinstance(error, TransientError):
        return True if error.wait_s is None else error.wait_s
    is_remote = isinstance(error, OSError) and not isinstance(error, StorageError) and error.errno is None
    return isinstance(error, (TimeoutError, ConnectionError)) or (is_remote and bool(_TRANSIENT.search(str(error))))


_BY_ERRNO = {
    errno.ENOENT: ("it does not exist", "Check the path."),
    errno.ENOTDIR: ("a part of its path is a file", "Check the path."),
    errno.EISDIR: ("it is a folder", "Give the path of a file."),
    errno.EACCES: ("permission denied", "Give this user access to it, or choose another path."),
    errno.EPERM: ("permission denied", "Give this user access to it, or choose another path."),
    errno.EROFS: ("the filesystem is read-only", "Choose another path."),
    errno.ENOSPC: ("the disk is full", "Free disk space and run the same command again. It resumes."),
    errno.EDQUOT: ("the disk quota is exceeded", "Free disk space and run the same command again. It resumes."),
    errno.EFBIG: ("the file size limit is reached", "Raise the limit (ulimit -f) and run the same command again."),
}
_BY_TEXT = (
    (
        r"NO_SUCH_BUCKET|bucket.*(does not exist|not found)",
        "the bucket does not exist",
        "Create the bucket, or check its name, region and endpoint.",
    ),
    (r"NO_SUCH_KEY|RESOURCE_NOT_FOUND|HTTP status 404|No such file", "it does not exist", "Check the path."),
    (
        r"ACCESS_DENIED|HTTP status 403|INVALID_ACCESS_KEY|SIGNATURE_DOES_NOT_MATCH|CREDENTIAL",
        "access denied",
        "Check the credentials (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_PROFILE) and their rights.",
    ),
    (
        r"NETWORK_CONNECTION|curlCode|resolve host|timed? ?out",
        "the endpoint cannot be reached",
        "Check the network and the endpoint (AWS_ENDPOINT_URL, AWS_REGION).",
    ),
)


def explain(error: OSError, uri: str, action: str) -> StorageError:
    """Return a StorageError with the action, the URI, the cause, and a hint."""
    kinds = {FileNotFoundError: errno.ENOENT, PermissionError: errno.EACCES}  # fsspec raises them without errno
    what, hint = _BY_ERRNO.get(error.errno or kinds.get(type(error), 0), ("", ""))
    if not what:
        text = str(error)
        for pattern, cause, advice in _BY_TEXT:
            if re.search(pattern, text, re.IGNORECASE):
                what, hint = f"{cause} ({first_line(error)})", advice
                break
    what = what or first_line(error)
    return StorageError(f"cannot {action} {display(uri)}: {what}", hint or "Check the path and the storage behind it.")


def first_line(error: BaseException) -> str:
    """Return the first line of an error."""
    return (str(error) or type(error).__name__).splitlines()[0]


ALGORITHM = "AWS4-HMAC-SHA256"


def presigned(
    uri: str,
    *,
    seconds: int,
    answered: Mapping[str, str] | None = None,
    at: str = "",
    method: str = "GET",
    may_use_role: bool = False,
) -> str | None:
    """Return a URL to read or write an S3 object; None for other storage, and without credentials.

    answered: response headers, as `response-content-type`. at: signing time, as `20270131T120000Z`; by default now.
    may_use_role: sign with the keys of a role or profile too (aws_keys.py).
    """
    scheme = uri.partition("://")[0].lower()
    if scheme not in ("s3", "s3a", "s3n") or (client := s3_client(uri)).anonymous:
        return None
    region, time = _region(uri, client), at or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if (keys := find_keys(region) if may_use_role else keys_of_environment()) is None:
        return None
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{keys.key_id}/{scope}",
        "X-Amz-Date": time,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
        **(answered or {}),
    }
    if keys.token:
        query["X-Amz-Security-Token"] = keys.token
    host, path = _address(client, region, quote(urlsplit(uri, allow_fragments=False).path, safe="/-_.~"))
    pairs = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
    request = f"{method}\n{path}\n{pairs}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"{ALGORITHM}\n{time}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = functools.reduce(_hmac, scope.split("/"), f"AWS4{keys.secret}".encode())
    return f"{client.scheme}://{host}{path}?{pairs}&X-Amz-Signature={_hmac(key, text).hex()}"


def _region(uri: str, client: S3Client) -> str:
    """Return the region of the environment, else that of the bucket, which the S3 client has found."""
    filesystem = resolve(uri).filesystem
    assert isinstance(filesystem, pafs.S3FileSystem)
    return client.region or filesystem.region


def _address(client: S3Client, region: str, path: str) -> tuple[str, str]:
    """Return host and path. At AWS a bucket is a host, except for names with dots, which its certificates exclude."""
    host = client.endpoint or f"s3.{region}.amazonaws.com"
    if client.endpoint or "." in client.bucket:
        return host, f"/{client.bucket}{path}"
    return f"{client.bucket}.{host}", path


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode(), hashlib.sha256).digest()
