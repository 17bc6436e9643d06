"""A real S3 endpoint in this process: moto's server on a free port."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class S3Endpoint:
    """Where the server listens, and a bucket that exists there."""

    url: str
    bucket: str

    def uri(self, key: str) -> str:
        """`s3://` URI of a key of the bucket."""
        return f"s3://{self.bucket}/{key}"

    def client(self) -> Any:
        """boto3's client, to look at the bucket by other means than ours."""
        import boto3

        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1")


@contextmanager
def serve_s3() -> Iterator[S3Endpoint]:
    """Start the server and point the AWS environment, which child processes inherit, to it.

    The bucket is new each time: all servers of a process share their objects.
    """
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = S3Endpoint(f"http://{host}:{port}", f"qtune-{secrets.token_hex(4)}")
    settings = {
        "AWS_ENDPOINT_URL": endpoint.url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        endpoint.client().create_bucket(Bucket=endpoint.bucket)
        yield endpoint
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        server.stop()
