"""Checks, decodes, encodes, resizes and augments images: the only wing that imports OpenCV.

Entry: `codec.check_image`, `codec.decode_image`, `augment.augment`. Imports no other wing.
"""
