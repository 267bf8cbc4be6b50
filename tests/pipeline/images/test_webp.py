"""WebP files: whole, of one frame, and nothing behind them taken for a part."""

import numpy as np
import pytest
from PIL import Image

from pipeline.images import codec
from tests.support.pictures import decoded, saved, smooth

COLOUR = smooth(np.random.default_rng(0))


@pytest.mark.parametrize("lossless", [True, False])
def test_a_webp_is_read_whole_or_not_at_all(lossless: bool) -> None:
    data = saved(COLOUR, "webp", lossless=lossless)
    codec.check_image(data + b"a trailer")
    assert np.array_equal(codec.decode_image(data + b"a trailer"), decoded(data))
    for length in range(12, len(data), 7):
        with pytest.raises(ValueError, match="truncated WebP"):
            codec.check_image(data[:length])
    short = bytearray(data)
    for place in (4, 16):  # lengths of the file and of its first chunk
        short[place : place + 4] = (int.from_bytes(data[place : place + 4], "little") - 40).to_bytes(4, "little")
    with pytest.raises(ValueError, match="not a readable image"):
        codec.check_image(bytes(short))


def test_an_animation_is_refused() -> None:
    data = saved(COLOUR, "webp", save_all=True, append_images=[Image.fromarray(COLOUR[::-1])])
    with pytest.raises(ValueError, match="animated WebP: save one frame as a file of its own"):
        codec.check_image(data)
