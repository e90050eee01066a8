"""A real S3 server on loopback, with a fresh bucket for each test."""

import itertools
import logging
import os

import boto3
import pytest
from moto.server import ThreadedMotoServer

_numbers = itertools.count()
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "tester",
    "AWS_SECRET_ACCESS_KEY": "not-a-real-secret",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@pytest.fixture(scope="session")
def s3_server():
    """The endpoint of a server that lives as long as the session."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line per request
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """``s3://<fresh bucket>/compass``, with credentials in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in (CREDENTIALS | {"AWS_ENDPOINT_URL": s3_server}).items():
        monkeypatch.setenv(name, value)
    bucket = f"compass-{os.getpid()}-{next(_numbers)}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/compass"


class Bucket:
    """The objects below an address, seen past COMPASS."""

    def __init__(self, url):
        self.name, _, self.prefix = url.removeprefix("s3://").partition("/")
        self.client = boto3.client("s3")

    def names(self):
        found = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return sorted(entry["Key"].removeprefix(f"{self.prefix}/") for entry in found)

    def read(self, key):
        return self.client.get_object(Bucket=self.name, Key=f"{self.prefix}/{key}")["Body"].read()

    def write(self, key, data):
        self.client.put_object(Bucket=self.name, Key=f"{self.prefix}/{key}", Body=data)

    def delete(self, key):
        self.client.delete_object(Bucket=self.name, Key=f"{self.prefix}/{key}")


@pytest.fixture
def bucket(s3_url):
    """The bucket behind `s3_url`."""
    return Bucket(s3_url)
