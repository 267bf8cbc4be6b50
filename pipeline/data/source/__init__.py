"""Reads a folder or bucket of original files: lists them, pairs images with labels, accounts for what is left out.

Entry: `listing.list_source`, `pairing.by_folder`, `inventory.take_inventory`. Imports images, storage, and data's classes.
"""
