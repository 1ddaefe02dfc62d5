"""Pictures as cameras store them that were not held upright."""

from __future__ import annotations

import numpy as np
from PIL import Image


def stored_for(upright: np.ndarray, orientation: int) -> np.ndarray:
    """The pixels that a file with this EXIF orientation stores, by the table of the EXIF standard.

    The table gives the sides of the upright picture at which the first row and the first column of the file lie.
    """
    first_row, first_column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    sides = (first_row, first_column)
    pixels = upright[:: -1 if "bottom" in sides else 1, :: -1 if "right" in sides else 1]
    return np.ascontiguousarray(pixels if first_row in ("top", "bottom") else np.swapaxes(pixels, 0, 1))


def save_turned(path, upright: np.ndarray, orientation: int, **options) -> None:
    """Writes the picture with its EXIF orientation; the suffix of the path decides the format."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(stored_for(upright, orientation)).save(path, exif=exif, **options)
