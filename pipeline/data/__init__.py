"""Turns a source into a prepared data set: its files (`source/`), classes, labels, inspection, shards, index, manifest.

Entry: `prepare.prepare`, `manifest.open_data`. Imports images, config, storage, cluster.
"""
