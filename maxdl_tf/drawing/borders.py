"""Where the segments of a label map touch."""

from __future__ import annotations

import numpy as np

_AREA_FOR_LINE = 50  # Least area of a segment under lines of one pixel: a square keeps more than half of itself.
_ROWS = 256  # Rows compared at a time: a large map at once would take too much memory.


def neighbors(label_map: np.ndarray) -> dict[int, set[int]]:
    """For each label that touches others, these."""
    touching: dict[int, set[int]] = {}
    for top in range(0, len(label_map), _ROWS):
        band = label_map[top : top + _ROWS + 1]
        for one, other in ((band[:-1], band[1:]), (band[:, :-1], band[:, 1:])):
            differ = one != other
            for pair in set(zip(one[differ].tolist(), other[differ].tolist())):
                touching.setdefault(pair[0], set()).add(pair[1])
                touching.setdefault(pair[1], set()).add(pair[0])
    return touching


def lines(number: np.ndarray, areas: np.ndarray, width: int) -> np.ndarray:
    """bool [h, w], lines between segments, in the larger of the two.

    Args:
      number: int [h, w], number of each pixel's segment.
      areas: int [segments], numbers of their pixels.
      width: Number of pixels. Lines in segments that they would hide are thinner.
    """
    area = areas[number]
    on_line = np.zeros(number.shape, bool)
    for line, segment, size in ((on_line, number, area), (on_line.T, number.T, area.T)):
        differ = segment[1:] != segment[:-1]
        in_second = size[1:] >= size[:-1]
        line[1:] |= differ & in_second
        line[:-1] |= differ & ~in_second
    on_line &= area >= _AREA_FOR_LINE
    for row in range(2, width + 1):
        wider = on_line.copy()
        for wide, line, segment in ((wider, on_line, number), (wider.T, on_line.T, number.T)):
            same = segment[1:] == segment[:-1]
            wide[1:] |= line[:-1] & same
            wide[:-1] |= line[1:] & same
        on_line |= wider & (area >= _AREA_FOR_LINE * row**2)
    return on_line
