"""The compressed pixels of PNG and TIFF files: zlib streams, which carry a checksum."""

import zlib
from collections.abc import Iterable


def inflated(name: str, parts: Iterable[bytes], most: int) -> int:
    """Number of bytes in a zlib stream, counted up to a little over `most`. Raises ValueError if it is damaged or cut."""
    stream, length = zlib.decompressobj(), 0
    for part in parts:
        try:
            while part and not stream.eof and length <= most:
                # In small pieces, because a few KB can hold gigabytes.
                length += len(stream.decompress(part, 2**20))
                part = stream.unconsumed_tail
        except zlib.error as error:
            raise ValueError(f"damaged {name}: its pixels: zlib: {str(error).rpartition(': ')[2]}") from error
    if not stream.eof and length <= most:
        raise ValueError(f"damaged {name}: its pixels: the zlib stream ends too early")
    return length
