"""A person's own picture of a digit -> an image like the data set's.

A classifier only knows what its data set looks like. So this repeats on a photo, a scan or a
drawing what was done to make MNIST (LeCun, Bottou, Bengio, Haffner 1998, "Gradient-based learning
applied to document recognition", section III.A): bright ink on black, the aspect ratio kept, 20 of
28 pixels for the longer side, anti-aliased, the centre of mass in the middle.
"""

import io
import struct
import warnings
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from job import storage
from job.errors import DataError
from job.pictures import ink
from job.storage import Place

MAX_BYTES = 32 * storage.MEBIBYTE
MAX_PIXELS = 40_000_000  # a 40-megapixel phone; decoded at most 160 MB

Pixels = NDArray[np.uint8]

_BOX = 20 / 28  # share of each side that MNIST's digits may fill
_ORIENTATION = 0x0112  # EXIF 2.32

# Everything that Pillow's PNG and JPEG readers were seen to raise on bad bytes.
_BAD_BYTES = (
    *(OSError, SyntaxError, ValueError, ArithmeticError, LookupError, EOFError, TypeError),
    *(MemoryError, struct.error, zlib.error),
)

# What undoes each value of the EXIF tag Orientation.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_picture(place: Place, image_shape: tuple[int, ...]) -> Pixels:
    """Return the digit in the PNG or JPEG picture at `place` as an image like the data set's.

    The picture may have any size and mode, dark ink on light paper or the reverse, uneven light,
    and a thin or thick pen. One that already is an image like the data set's stays as it is.

    Args:
        place: where the picture lies.
        image_shape: (H, W) or (H, W, 1) in pixels, the shape of the model's images.

    Returns:
        uint8 of shape `image_shape`: 255 is full ink, 0 is paper.

    Raises:
        MissingInputError: there is no such file, or it may not be read.
        DataError: it is no PNG or JPEG, or damaged, animated, too large or blank; or `image_shape`
            is not that of a greyscale image.
    """
    if image_shape[2:] not in ((), (1,)):
        raise DataError(
            f"{place} cannot be fed to a model of images of shape {image_shape}: own pictures only "
            "work with greyscale models, of shape (H, W) or (H, W, 1)"
        )
    height, width = image_shape[:2]
    picture = _decode(str(place), storage.read(place, MAX_BYTES))
    image = np.asarray(picture)
    if not _is_like_data_set(image, (height, width)):
        image = _render(ink.stroke_normalised(ink.trace(str(place), picture)), height, width)
    return image.reshape(image_shape).copy()


def _decode(uri: str, data: bytes) -> Image.Image:
    """Return the picture in `data`, upright, as 8-bit luminance."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's doubts about a file are settled here
            with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
                _check_header(uri, image)
                image.load()
                luminance = _luminance(image)
                turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
                return luminance if turn is None else luminance.transpose(turn)
    except Image.DecompressionBombError as error:
        raise DataError(f"{uri} has too many pixels: give a smaller picture") from error
    except _BAD_BYTES as error:
        raise DataError(
            f"{uri} is not a PNG or JPEG picture, or it is damaged ({len(data)} bytes, beginning "
            f"with {data[:8]!r}): save it again as PNG or JPEG"
        ) from error


def _check_header(uri: str, image: Image.Image) -> None:
    """Refuse by what the header says, before anything is decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise DataError(
            f"{uri} has too many pixels, {image.width} x {image.height}: at most "
            f"{MAX_PIXELS // 10**6} megapixels are read; give a smaller picture"
        )
    # A JPEG of several frames is a phone's photo with a preview or a depth map.
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise DataError(f"{uri} is an animated picture: give a still one")


def _luminance(image: Image.Image) -> Image.Image:
    """Return `image` in mode L, with its transparent parts filled so that the ink stands out."""
    if image.mode.startswith("I"):  # 16 bits: Pillow's own conversion clips instead of scaling
        return Image.fromarray((np.asarray(image, np.float32) / 257).astype(np.uint8))
    if not image.has_transparency_data:
        return image.convert("L")
    rgba = image.convert("RGBA")
    alpha, luminance = rgba.getchannel("A"), rgba.convert("RGB").convert("L")
    seen = np.asarray(luminance)[np.asarray(alpha) >= 128]
    if seen.size == 0:
        return Image.new("L", image.size)
    low, middle, high = np.percentile(seen, (1, 50, 99))
    has_paper = high - low >= 128  # else it is nothing but ink on a transparent ground
    paper = int(middle) if has_paper else 255 * int(middle < 128)
    return Image.composite(luminance, Image.new("L", image.size, paper), alpha)


def _is_like_data_set(image: Pixels, shape: tuple[int, int]) -> bool:
    """Tell whether `image` was made as MNIST was: black around a large digit in the middle."""
    if image.shape != shape or not image.any():
        return False
    edge = ink.ring(image)
    largest = max(np.array(ink.cropped(image > 0).shape) / shape)
    off_centre = np.abs(_centre_of_mass(image) / shape - 0.5)
    dark_edge = 2 * np.count_nonzero(edge) <= edge.size
    return bool(dark_edge and largest >= _BOX - 1 / 14 and (off_centre <= 1 / 14).all())


def _render(mask: ink.Mask, height: int, width: int) -> Pixels:
    """Return the digit `mask` as an image: fitted into the box, anti-aliased and centred."""
    scale = min(_BOX * height / mask.shape[0], _BOX * width / mask.shape[1])
    size = (max(1, round(mask.shape[1] * scale)), max(1, round(mask.shape[0] * scale)))
    shares = np.asarray(
        Image.fromarray(mask.astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    )
    digit = np.rint(shares * (255 / shares.max())).astype(np.uint8)
    image = np.zeros((height, width), np.uint8)
    # MNIST's centres of mass lie at pixel H / 2, W / 2, but the digit must not leave the image.
    room = np.array(image.shape) - digit.shape
    top, left = np.clip(np.rint(np.array(image.shape) / 2 - _centre_of_mass(digit)), 0, room)
    image[int(top) : int(top) + digit.shape[0], int(left) : int(left) + digit.shape[1]] = digit
    return image


def _centre_of_mass(image: Pixels) -> NDArray[np.float64]:
    """Return the row and the column, in pixels, around which the ink of `image` is balanced."""
    masses = image.sum(axis=1, dtype=np.float64), image.sum(axis=0, dtype=np.float64)
    return np.array([np.average(np.arange(len(mass)), weights=mass) for mass in masses])
