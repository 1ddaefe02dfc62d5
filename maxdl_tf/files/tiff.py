"""TIFF files that Pillow cannot read or reads with 8 bits only, by the package tifffile.

An image is one plane of one to three channels. Channels are the samples of a pixel, or pages that an ImageJ hyperstack
or an OME-TIFF calls channels. One is gray; two and three are red, green and blue. Stacks and time series are refused.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import numpy as np
from PIL import Image

from maxdl_tf.errors import UserError

if TYPE_CHECKING:
    import tifffile

_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # The last two: BigTIFF.
_AXES = {"Z": "slices (z)", "T": "times (t)", "C": "channels", "S": "samples", "P": "positions"}
_KIND, _BITS, _DESCRIPTION, _ORIENTATION, _PLANAR, _SAMPLE_FORMAT = 254, 258, 270, 274, 284, 339
_SMALLER_COPY, _MASK = 1, 4  # Bits of the kind of a page.
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR = 0, 1, 2, 6  # Photometric interpretations.
_ALPHA = ((1,), (2,))  # Kinds of the extra samples.
_APART = 2  # Planar configuration: a plane for each sample.
_UNSIGNED, _SIGNED = 1, 2  # Formats of the samples.


def bits(image: Image.Image) -> int:
    """Largest number of bits of a channel of a TIFF file that Pillow opened."""
    return max(image.tag_v2.get(_BITS, (1,)))


def stored_values(image: Image.Image) -> np.ndarray:
    """The values [height, width, ...] of a TIFF file that Pillow opened, with the sign that the file gives them.

    Pillow takes signed numbers of 8 bits for unsigned ones, and unsigned numbers of 32 bits for signed ones.
    """
    values, kind = np.asarray(image), (bits(image), *image.tag_v2.get(_SAMPLE_FORMAT, (_UNSIGNED,))[:1])
    if image.mode == "L" and kind == (8, _SIGNED):
        return values.view(np.int8)
    return values.view(np.uint32) if image.mode == "I" and kind == (32, _UNSIGNED) else values


def beyond_pillow(source: IO[bytes], exact: bool) -> str:
    """What in a TIFF file needs tifffile; "" if nothing does, and for files of other formats.

    Args:
      source: Content of the file.
      exact: Whether the upper 8 of 16 bits are not enough.
    """
    is_tiff = source.read(4) in _MAGIC
    source.seek(0)
    if not is_tiff:
        return ""
    try:
        image = Image.open(source, formats=("TIFF",))
        tags, size = image.tag_v2, image.size
        if re.match(r"ImageJ=.*^images=(?!1$)", str(tags.get(_DESCRIPTION)), re.MULTILINE | re.DOTALL):
            return "several pages"  # One entry may stand for all pages of a large stack.
        # If colors lie apart, Pillow takes their 16 bits for 8.
        bands, lie_apart = len(image.getbands()), tags.get(_PLANAR) == _APART
        if bands > 1 and bits(image) > 8 and (exact or lie_apart):
            return "colors of 16 bits"
        if bands == 4 and lie_apart:
            return "four planes"
        for number in range(1, image.n_frames):
            image.seek(number)
            is_smaller = math.prod(image.size) < math.prod(size)
            if not is_smaller and not image.tag_v2.get(_KIND, 0) & (_SMALLER_COPY | _MASK):
                return "several pages"
        return ""
    except Exception:  # Of any kind; a damaged file, or pixels that only tifffile knows.
        return "pixels that Pillow does not read"
    finally:
        source.seek(0)


def read_values(source: IO[bytes], name: str, check_size: Callable[[int, int], None], reason: str) -> np.ndarray:
    """The values of the only image of a TIFF file, upright.

    Args:
      source: Content of the file.
      name: Name of the file in errors.
      check_size: Function of width and height, which raises UserError if the image is too large to be decoded.
      reason: What in the file needs tifffile, for the error if it is not installed.

    Returns:
      Integers or floats [height, width], or [height, width, 3].

    Raises:
      UserError: tifffile is not installed, or the file has several images or more than three channels.
      Exception: The file is damaged.
    """
    try:
        import tifffile
    except ImportError:
        raise UserError(
            f"{name}: a TIFF file with {reason}, which needs tifffile; install it: pip install 'maxdl_tf[microscopy]'"
        ) from None
    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # What matters is raised.
    with tifffile.TiffFile(source) as file:
        if not file.series or not {"X", "Y"} <= set(file.series[0].axes):
            raise ValueError("it has no pixels")
        series, *others = file.series
        if any(other.size >= series.size for other in others):
            raise UserError(f"{name}: {len(others) + 1} images in a TIFF file; save each as a file of its own")
        axis, channels = _channels(series, name)
        check_size(*(series.shape[series.axes.index(side)] for side in "XY"))
        values = _decoded(series, name)
        tag = series.keyframe.tags.get(_ORIENTATION)
    if axis is not None:
        values = np.moveaxis(values, axis, -1)[..., :channels]
    values = turned(values, tag.value if tag is not None else 1)
    if values.ndim == 3 and channels == 1:
        return values[..., 0]
    return np.pad(values, [(0, 0), (0, 0), (0, 1)]) if channels == 2 else values


def _channels(series: tifffile.TiffPageSeries, name: str) -> tuple[int | None, int]:
    """The axis of the channels, if there is one, and the number of channels without alpha."""
    axes, shape, page = series.axes, series.shape, series.keyframe
    more = [axis for axis in axes if axis not in "YX"]
    if len(more) > 1 or (more and more[0] not in "CS"):
        raise UserError(f"{name}: {_described(axes, shape)}; {_advice(more)}")
    if page.photometric not in (_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _YCBCR):
        raise UserError(f"{name}: colors of the kind {page.photometric.name}; save it as gray or RGB")
    if not more:
        return None, 1
    channels = shape[axes.index(more[0])]
    # Some versions of tifffile write four slices so.
    if more == ["S"] and channels == 4 and page.planarconfig == _APART:
        raise UserError(
            f"{name}: four planes, which may be a stack or RGB with alpha; save each slice as a file of its own, or an "
            "image as RGB"
        )
    is_alpha = channels in (2, 4) and tuple(page.extrasamples)[-1:] in _ALPHA
    if more == ["S"] and (is_alpha or (channels == 4 and page.photometric == _RGB)):
        channels -= 1
    if channels > 3:
        raise UserError(f"{name}: {channels} channels; save an image with at most three of them")
    return axes.index(more[0]), channels


def _decoded(series: tifffile.TiffPageSeries, name: str) -> np.ndarray:
    """The values of a series: integers, or floats of at least 32 bits."""
    try:
        values = series.asarray()
    except (ValueError, KeyError) as error:
        if "imagecodecs" in str(error):
            raise UserError(f"{name}: {error}; install it with pip, or save the file uncompressed") from None
        raise
    if not values.size:
        raise ValueError("it has no pixels")
    if values.dtype.kind not in "buif":
        raise UserError(f"{name}: values of type {values.dtype}; save them as integers or floats")
    if values.dtype.kind == "b":
        return values.astype(np.uint8) * 255
    return values.astype(np.float32) if values.dtype == np.float16 else values


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """An image, [height, width, ...], of an EXIF orientation, upright."""
    if orientation in (5, 6, 7, 8):
        values = values.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values[:, ::-1] if orientation in (2, 3, 6, 7) else values


def _described(axes: str, shape: tuple[int, ...]) -> str:
    """ "a stack of 12 slices (z) x 2 channels of 512 x 512 pixels"."""
    others = [f"{length} {_AXES.get(axis, 'pages')}" for axis, length in zip(axes, shape) if axis not in "YX"]
    return f"a stack of {' x '.join(others)} of {shape[axes.index('X')]} x {shape[axes.index('Y')]} pixels"


def _advice(more: list[str]) -> str:
    if all(axis in _AXES for axis in more):
        return "save each image as a file of its own (Fiji: Image Sequence), or a projection of the stack"
    return "save each page as a file of its own; if the pages are channels, state it: tifffile metadata axes 'CYX'"
