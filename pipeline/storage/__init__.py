"""Buckets and folders behind the same few verbs: the only wing that knows fsspec, s3fs and botocore.

Entry: `store.open_store`. Imports config.
"""
