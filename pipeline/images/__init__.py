"""Encoded images to uint8 arrays and back, resizing, augmentation: the only wing that knows OpenCV.

Entry: `codec.decode_image`, `augment.augment`. Imports no other wing.
"""
