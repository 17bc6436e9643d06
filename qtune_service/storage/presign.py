"""Create presigned URLs of S3 objects (Signature Version 4 in the query), valid for some minutes.

pyarrow cannot presign, and botocore is a dependency of 30 MB for forty lines of HMAC. Only credentials of the
environment (AWS_ACCESS_KEY_ID, ...) are used. Profiles and roles need botocore. Without credentials there is no URL.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from urllib.parse import quote, urlsplit

import pyarrow.fs as pafs

from qtune_service.storage.filesystems import S3Client, resolve, s3_client

ALGORITHM = "AWS4-HMAC-SHA256"


def presigned(uri: str, *, seconds: int, answered: Mapping[str, str] | None = None, at: str = "") -> str | None:
    """Return a URL to read an S3 object; None for other storage, and without credentials.

    answered: response headers, as `response-content-type`. at: signing time, as `20270131T120000Z`; by default now.
    """
    key_id, secret = os.environ.get("AWS_ACCESS_KEY_ID"), os.environ.get("AWS_SECRET_ACCESS_KEY")
    if not uri.startswith("s3://") or not key_id or not secret or (client := s3_client(uri)).anonymous:
        return None
    region, time = _region(uri, client), at or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    scope = f"{time[:8]}/{region}/s3/aws4_request"
    query = {
        "X-Amz-Algorithm": ALGORITHM,
        "X-Amz-Credential": f"{key_id}/{scope}",
        "X-Amz-Date": time,
        "X-Amz-Expires": str(seconds),
        "X-Amz-SignedHeaders": "host",
        **(answered or {}),
    }
    if token := os.environ.get("AWS_SESSION_TOKEN"):
        query["X-Amz-Security-Token"] = token
    host, path = _address(client, region, quote(urlsplit(uri, allow_fragments=False).path, safe="/-_.~"))
    pairs = "&".join(f"{quote(name, safe='-_.~')}={quote(query[name], safe='-_.~')}" for name in sorted(query))
    request = f"GET\n{path}\n{pairs}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"{ALGORITHM}\n{time}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    key = functools.reduce(_hmac, scope.split("/"), f"AWS4{secret}".encode())
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
