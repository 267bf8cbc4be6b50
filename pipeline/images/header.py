"""What an image file says about itself: format, size, bits, orientation. Read without decoding a pixel."""

from typing import NamedTuple

MAX_PIXELS = 2**28
"""16384 x 16384: decoded, image and label take 1 GiB. OpenCV's own limit, 2**30, would take 4 GiB in each process."""
MAX_SIDE = 2**20
"""OpenCV's limit of a width or a height."""


class Header(NamedTuple):
    """The header of an image file."""

    format: str
    """PNG, JPEG, TIFF, BMP or WebP."""
    width: int
    height: int
    colours: str
    """grey, palette, RGB or what else the pixels are."""
    bits: int = 8
    """Bits of a channel or of a palette index."""
    orientation: int = 1
    """EXIF or TIFF orientation tag, 1 to 8; 1 is upright. From 5 on, width and height change places in the upright view."""

    @property
    def upright(self) -> tuple[int, int]:
        """(height, width) of the view that the orientation tag asks for."""
        return (self.width, self.height) if self.orientation > 4 else (self.height, self.width)

    def checked(self) -> "Header":
        """This header. Raises ValueError for a size that is not read."""
        size = f"{self.width} x {self.height} pixels"
        if self.width <= 0 or self.height <= 0:
            raise ValueError(f"damaged {self.format}: its header says {size}")
        if self.width * self.height > MAX_PIXELS or max(self.width, self.height) > MAX_SIDE:
            raise ValueError(
                f"{size}: at most {MAX_PIXELS} pixels (such as 16384 x 16384) and {MAX_SIDE} a side are read: "
                "cut the image and its label into tiles"
            )
        return self
