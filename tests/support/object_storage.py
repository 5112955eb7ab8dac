"""Pytest plugin: a server of object storage by S3's protocol, and new buckets of it."""

import secrets
from collections.abc import Iterator

import pytest

from tests.support.s3_server import ObjectStorage

_CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "testing",
    "AWS_SECRET_ACCESS_KEY": "testing",
    "AWS_DEFAULT_REGION": "us-east-1",
    # Of botocore, on top of those of s3fs: an outage is found out within seconds.
    "AWS_MAX_ATTEMPTS": "1",
}


@pytest.fixture(scope="session")
def object_storage() -> Iterator[ObjectStorage]:
    """A server of S3's protocol, which this process and its children use by the environment."""
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    storage = ObjectStorage()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _CREDENTIALS.items():
            patch.setenv(name, value)
        patch.setenv("AWS_ENDPOINT_URL", storage.url)
        yield storage
    storage.stop()


@pytest.fixture
def s3(object_storage: ObjectStorage) -> str:
    """URL of a new bucket, s3://NAME."""
    import boto3
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()  # an instance keeps the address of another server
    name = f"bucket-{secrets.token_hex(4)}"
    boto3.client("s3", endpoint_url=object_storage.url).create_bucket(Bucket=name)
    return f"s3://{name}"
