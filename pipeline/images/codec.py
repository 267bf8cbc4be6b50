"""Decodes image files to uint8 arrays, encodes arrays, and checks files for damage."""

import os
import re
import tempfile
import threading

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.images import bmp, files, jpeg, png, tiff, webp
from pipeline.images.header import Header

# Our errors name the file; OpenCV's own lines on stderr do not.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)

UInt8 = npt.NDArray[np.uint8]
IGNORE = 255
SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".tif", ".tiff", ".bmp", ".webp")
"""Endings of the names of image files, in lower or upper case."""
LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")
"""Endings of the names of label files, in lower or upper case: formats that keep every value."""
ONE_CHANNEL = "a label is an 8-bit image of one channel or a palette PNG"
LABEL_FORMATS = ("PNG", "TIFF", "BMP")
FEW_LEVELS = 32
"""Grey levels of a channel; a 16-bit image that keeps fewer of its levels as 8 bits is refused."""
LOST = re.compile(
    r"(Corrupt JPEG data(?!: bad ICC).*|Premature end of JPEG.*|Inconsistent progression.*)|\[ERROR.* TIFF_Error (.*)"
)
"""The lines by which libjpeg (jerror.h) and libtiff say that they do not have every pixel."""
OURS = re.compile(rf"{LOST.pattern}|\[ERROR:|>")
"""These, and the other lines of OpenCV about an image that does not decode."""
STDERR = threading.Lock()


def decode_image(data: bytes) -> UInt8:
    """uint8[H, W, 3] RGB from an encoded grey, palette or colour image, without alpha. Raises ValueError if it does not decode.

    An EXIF orientation is not applied, because labels have none and belong to the pixels as stored.
    """
    return _decode(_without_alpha(data), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)


def decode_upright(data: bytes) -> UInt8:
    """Like `decode_image`, but turned as the file's EXIF orientation says: the image as viewers show it."""
    return _decode(_without_alpha(data), cv2.IMREAD_COLOR_RGB)


def checked_upright(data: bytes) -> UInt8:
    """Like `decode_upright`, after `check_image`: for files that nobody has checked."""
    check_image(data)
    return decode_upright(data)


def _without_alpha(data: bytes) -> bytes:
    return tiff.without_alpha(data) if data.startswith(tiff.SIGNATURES) else data


def decode_label(data: bytes) -> UInt8:
    """uint8[H, W] from a PNG, TIFF or BMP of one channel of at most 8 bits or with a palette: the stored values or indices.

    Raises ValueError for any other image, or if it does not decode.
    """
    header = files.read_header(data)
    if header.format not in LABEL_FORMATS:
        raise ValueError(f"a label must be a PNG, TIFF or BMP: {header.format} changes the class ids: export it again as PNG")
    if not is_of_ids(header):
        raise ValueError(f"{ONE_CHANNEL}, found {header.colours} of {header.bits} bits a channel; store class ids instead")
    if header.format == "BMP":
        return bmp.indices(data)
    label = _decode(png.as_grey(data) if header.format == "PNG" else tiff.as_grey(data), cv2.IMREAD_UNCHANGED)
    # OpenCV scales values of 1, 2 and 4 bits to 0..255; labels need the stored values.
    return label if header.bits == 8 else label // np.uint8(255 // (2**header.bits - 1))


def is_of_ids(header: Header) -> bool:
    """Whether `decode_label` reads it: one channel of at most 8 bits, or a palette."""
    return header.format in LABEL_FORMATS and header.colours in ("grey", "palette") and header.bits <= 8


def decode_values(data: bytes) -> UInt8 | npt.NDArray[np.uint16]:
    """uint8 or uint16 [H, W] or [H, W, C] as stored, but BGR. Raises ValueError if it does not decode."""
    return _decode(_without_alpha(data), cv2.IMREAD_UNCHANGED)


def check_encoding(data: bytes) -> Header:
    """The header of a sound image file. Raises ValueError that says what is wrong with the file and what to do.

    Decoders fill what is missing with grey and raise nothing, so lengths, checksums and the decoder's warnings are looked at.
    JPEG, WebP, BMP and most TIFF files have no checksum: a changed byte that decodes without a warning is not seen.
    """
    header = files.read_header(data)
    if header.format == "PNG":
        png.check_pixels(data)
    elif header.format == "TIFF":
        tiff.check_pixels(data)
        _check_warnings(data, "TIFF", cv2.IMREAD_COLOR)
    elif header.format == "JPEG":
        # Without metadata, because libjpeg prints its first warning alone. One pixel in 64 is computed, all bytes are decoded.
        _check_warnings(jpeg.walk(data).picture, "JPEG", cv2.IMREAD_REDUCED_GRAYSCALE_8)
    elif header.format == "WebP":
        _decode(webp.picture(data), cv2.IMREAD_COLOR)
    return header


def check_image(data: bytes) -> Header:
    """Like `check_encoding`, for an image: refuses also 16 bits of which too little is left as 8."""
    header = check_encoding(data)
    if header.bits == 16:
        stored, kept = _levels(_decode(data, cv2.IMREAD_UNCHANGED)), _levels(decode_image(data))
        if len(kept) < min(FEW_LEVELS, len(stored)):
            raise ValueError(
                f"16-bit image with values {stored[0]} to {stored[-1]}: as 8 bits, {len(kept)} of its {len(stored)} levels are "
                "left: scale the values of all images to 0..255 in the same way and save them as 8 bits"
            )
    return header


def _levels(image: UInt8) -> npt.NDArray[np.int64]:
    """The values that occur in any channel but alpha, sorted."""
    seen = np.zeros(65536, np.bool_)
    for row in image:
        seen[row[..., :3] if image.ndim == 3 and image.shape[2] > 2 else row] = True
    return np.flatnonzero(seen)


def _check_warnings(data: bytes, name: str, flags: int) -> None:
    """Raises ValueError if the decoder warns of lost data: it would give grey or black pixels for them."""
    decoded, warnings = _decode_watched(data, flags | cv2.IMREAD_IGNORE_ORIENTATION)
    lost = next((line for line in warnings if not _only_padding(line, data[:-2])), "" if decoded else "it does not decode")
    if lost:
        raise ValueError(f"damaged {name}: {lost}: copy it again, or save it again if a viewer shows it whole")


def _only_padding(warning: str, picture: bytes) -> bool:
    """Whether the warning is of bytes 00 or FF before a JPEG's end marker: some cameras fill their files so."""
    found = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    return found is not None and set(picture[-int(found[1]) :]) <= {0, 255}


def _decode_watched(data: bytes, flags: int) -> tuple[bool, list[str]]:
    """Whether an image decodes, and the decoder's warnings of lost data.

    libjpeg and libtiff write them to stderr and tell them in no other way. One call at a time, because stderr is the process's.
    """
    # Opened to append: at a shared position, a line of another thread could replace the decoder's.
    with STDERR, tempfile.TemporaryFile("a+b") as caught:
        before = os.dup(2)
        os.dup2(caught.fileno(), 2)
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)
        try:
            image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
        except cv2.error:
            image = None
        finally:
            cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
            os.dup2(before, 2)
            os.close(before)
        caught.seek(0)
        lines = caught.read().decode(errors="replace").splitlines(keepends=True)
    found = [LOST.match(line) for line in lines]
    others = [line for line in lines if line.strip() and not OURS.match(line)]
    os.write(2, "".join(others).encode())  # what other threads wrote meanwhile
    return image is not None, [(lost[1] or lost[2]).strip() for lost in found if lost]


def _decode(data: bytes, flags: int) -> UInt8:
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags) if len(data) else None
    except cv2.error as error:
        raise ValueError(f"not a readable image ({len(data)} bytes): OpenCV: {error.err}") from error
    except MemoryError as error:
        raise ValueError(f"not enough memory to decode it ({len(data)} bytes)") from error
    if image is None:
        raise ValueError(f"not a readable image ({len(data)} bytes)")
    return as_uint8(image)


def as_uint8(image: cv2.typing.MatLike) -> UInt8:
    """The same array, typed as uint8: OpenCV's stubs do not know that uint8 input gives uint8 output."""
    return image  # type: ignore[return-value]


def encode_png(image: UInt8) -> bytes:
    """PNG bytes of uint8[H, W, 3] RGB or uint8[H, W]."""
    done, data = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR) if image.ndim == 3 else image)
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as PNG")
    return data.tobytes()


def encode_jpeg(image: UInt8, quality: int = 95) -> bytes:
    """JPEG bytes of uint8[H, W, 3] RGB."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise ValueError(f"cannot encode an image of shape {image.shape} as JPEG")
    return data.tobytes()
