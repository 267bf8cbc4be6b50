"""The state of a training run in the store: written, verified, kept or deleted. The only wing that knows safetensors.

Entry: `checkpoint.save`, `checkpoint.load`, `retention.latest_step`. Imports storage.
"""
