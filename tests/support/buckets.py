"""Buckets of the tests' S3 server."""

import secrets

from pipeline.config.base import Storage
from pipeline.storage.store import Store, open_store


def make_bucket(endpoint: str) -> Store:
    """A prefix in a new bucket."""
    bucket = f"bucket-{secrets.token_hex(4)}"
    store = open_store(f"s3://{bucket}/some/prefix/", Storage(path="unused", endpoint=endpoint))
    store._fs().mkdir(bucket)
    return store
