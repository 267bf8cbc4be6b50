"""Buckets and folders behind one interface: the only wing that imports fsspec, s3fs and botocore.

Entry: `store.open_store`. Imports config.
"""
