"""A job with the rights that deploy/store/nodes.json gives to Ray's nodes, at a store that enforces them (moto)."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from tests.jobs import DEMO_DATA, DEMO_MODEL, REPO, environment, qtune
from tests.s3 import wait_until_it_listens
from tests.waiting import free_port

SETUP_CALLS = 6
"""Requests before moto begins to enforce rights."""
OF_MOTO = {"Effect": "Allow", "Action": ["s3:DeleteObject"], "Resource": ["arn:aws:s3:::qtune", "arn:aws:s3:::qtune/"]}
"""Of a request that deletes several objects moto asks about the bucket; S3 and MinIO ask about each object."""
BUCKET = "qtune"


@pytest.fixture
def nodes() -> Iterator[dict[str, str]]:
    """Yield the environment of a node of compose.yaml."""
    port = free_port()
    env = environment({"INITIAL_NO_AUTH_ACTION_COUNT": str(SETUP_CALLS)})
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_it_listens(port, server)
        url = f"http://127.0.0.1:{port}"
        policy = json.loads((REPO / "deploy" / "store" / "nodes.json").read_text(encoding="utf-8"))
        policy["Statement"].append(OF_MOTO)
        root, iam = client("s3", url, "root", "root"), client("iam", url, "root", "root")
        root.create_bucket(Bucket=BUCKET)
        rows = DEMO_DATA.read_bytes().splitlines(keepends=True)[:60]
        root.put_object(Bucket=BUCKET, Key="datasets/data.jsonl", Body=b"".join(rows))
        iam.create_user(UserName="nodes")
        made = iam.create_policy(PolicyName="nodes", PolicyDocument=json.dumps(policy))
        iam.attach_user_policy(UserName="nodes", PolicyArn=made["Policy"]["Arn"])
        key = iam.create_access_key(UserName="nodes")["AccessKey"]
        yield {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": key["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"],
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }
    finally:
        server.terminate()
        server.wait()


def client(service: str, url: str, key: str, secret: str) -> Any:
    """Return a client of boto3."""
    keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
    return boto3.client(service, endpoint_url=url, region_name="us-east-1", **keys)


@pytest.mark.slow
def test_a_job_needs_no_more_rights(nodes: dict[str, str]) -> None:
    """It reads an upload, writes its output, and cleans up; the upload and the rest of the bucket it cannot change."""
    own = client("s3", nodes["AWS_ENDPOINT_URL"], nodes["AWS_ACCESS_KEY_ID"], nodes["AWS_SECRET_ACCESS_KEY"])
    for key in ("datasets/data.jsonl", "elsewhere"):
        with pytest.raises(ClientError, match="AccessDenied"):
            own.put_object(Bucket=BUCKET, Key=key, Body=b"x")
    with pytest.raises(ClientError, match="AccessDenied"):
        own.delete_object(Bucket=BUCKET, Key="datasets/data.jsonl")
    job = ["prune", f"s3://{BUCKET}/datasets/data.jsonl", "--model", DEMO_MODEL, "--engine", "reference"]
    done = qtune(*job, "--output", f"s3://{BUCKET}/outputs/job", env=nodes)
    assert done.returncode == 0, done.stderr
    assert own.head_object(Bucket=BUCKET, Key="outputs/job/manifest.json")["ContentLength"] > 0
    again = qtune(*job, "--output", f"s3://{BUCKET}/outputs/job", "--overwrite", env=nodes)
    assert again.returncode == 0, again.stderr
    refused = qtune(*job, "--output", f"s3://{BUCKET}/elsewhere/job", env=nodes)
    assert refused.returncode == 4
    assert "access denied" in refused.stderr
