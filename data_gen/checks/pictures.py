"""Checks of an encoded image by itself, and of where its segments lie."""

from __future__ import annotations

import hashlib
import io
from typing import NamedTuple

import numpy as np
from PIL import Image

_ORIENTATION = 0x0112  # EXIF tag.
_UPRIGHT = (None, 0, 1)
_TINY = 4  # Pixels.


class Picture(NamedTuple):
    """What an image file holds.

    Attributes:
      faults: (kind, what) of each fault.
      pixels: uint8 [height, width, 3], RGB; None if it cannot be decoded.
      digest: Of size and pixels.
      mode: Pillow's name of the file's colors.
      format: "jpeg", "png", or another.
    """

    faults: list[tuple[str, str]]
    pixels: np.ndarray | None = None
    digest: bytes | None = None
    mode: str = ""
    format: str = ""


def inspect_image(content: bytes) -> Picture:
    """Decodes an image file and looks at how it is stored."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            mode, kind = image.mode, {"MPO": "jpeg"}.get(image.format, (image.format or "").lower())
            orientation = image.getexif().get(_ORIENTATION)
            pixels = np.asarray(image.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise what they like on broken files.
        return Picture([("image-undecodable", f"{len(content)} bytes that cannot be decoded: {_reason(error)}")])
    faults = []
    if kind not in ("jpeg", "png"):
        faults.append(("image-format", f"a {kind.upper()} file"))
    if mode.startswith(("I", "F")):
        faults.append(("image-format", f"more than 8 bits per channel (mode {mode})"))
    elif mode in ("L", "1"):
        faults.append(("image-gray", "gray"))
    elif mode == "CMYK":
        faults.append(("image-cmyk", "CMYK"))
    elif mode in ("LA", "PA", "RGBA"):
        faults.append(("image-alpha", f"has transparency (mode {mode})"))
    if orientation not in _UPRIGHT:
        faults.append(("image-rotated", f"EXIF orientation {orientation}: viewers turn it, training does not"))
    digest = hashlib.blake2b(pixels, digest_size=16)
    digest.update(repr(pixels.shape).encode())
    return Picture(faults, pixels, digest.digest(), mode, kind)


def tiny_segments(ids: np.ndarray, areas: np.ndarray) -> list[tuple[int, str]]:
    """(segment, what) of those with fewer than 4 pixels.

    Args:
      ids: [segments].
      areas: [segments], in pixels.
    """
    return [(int(i), f"{area} pixel{'s' if area > 1 else ''} only") for i, area in zip(ids, areas) if 0 < area < _TINY]


def holes(id_map: np.ndarray, void: int) -> list[tuple[int, str]]:
    """(segment, what) of those that void pixels lie inside of: every neighbor of these is the segment's.

    Args:
      id_map: int [height, width].
      void: Its value where there is no segment.
    """
    from scipy import ndimage

    empty = id_map == void
    if not empty.any() or empty.all():
        return []
    components, _ = ndimage.label(empty)
    found: dict[int, list[int]] = {}
    height, width = id_map.shape
    for number, (rows, columns) in enumerate(ndimage.find_objects(components), start=1):
        if rows.start == 0 or columns.start == 0 or rows.stop == height or columns.stop == width:
            continue
        around = np.s_[rows.start - 1 : rows.stop + 1, columns.start - 1 : columns.stop + 1]
        inside = components[around] == number
        neighbors = np.unique(id_map[around][ndimage.binary_dilation(inside) & ~inside])
        if len(neighbors) == 1:
            found.setdefault(int(neighbors[0]), []).append(int(inside.sum()))
    return [
        (segment, f"{len(sizes)} hole{'s' if len(sizes) > 1 else ''} of void inside of it, {sum(sizes)} pixels")
        for segment, sizes in found.items()
    ]


def boxes(id_map: np.ndarray) -> dict[int, tuple[int, int, int, int]]:
    """{id: (left, top, width, height)} of all ids in a map, 0 too."""
    from scipy import ndimage

    ids, places = np.unique(id_map, return_inverse=True)
    found = ndimage.find_objects(places.reshape(id_map.shape) + 1)
    return {
        int(i): (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start)
        for i, (rows, columns) in zip(ids, found)
    }


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
