"""The class table of a COCO file's list of categories."""

from __future__ import annotations

import colorsys
import os
from typing import Any

from maxdl_tf.errors import UserError
from maxdl_tf.structs import DatasetInfo, SegmentClass


def dataset_info_of(
    categories: list[dict[str, Any]], source: str | os.PathLike, name: str, label_divisor: int = 256
) -> DatasetInfo:
    """The class table of a category list: ids from 1 in the order of the category ids, void 0.

    Raises:
      UserError: If the list is empty or an entry lacks something.
    """
    if not categories:
        raise UserError(f"{source} lists no categories; pass a class table with --dataset_info")
    classes = []
    for rank, category in enumerate(sorted(categories, key=lambda category: category["id"])):
        missing = [key for key in ("name", "isthing") if key not in category]
        if missing:
            raise UserError(
                f"{source}: category {category['id']} has no {missing[0]!r}; add it, or pass --dataset_info"
            )
        color = tuple(category.get("color") or distinct_color(rank))
        classes.append(SegmentClass(rank + 1, category["name"], bool(category["isthing"]), color, category["id"]))
    try:
        return DatasetInfo(name, tuple(classes), label_divisor)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error


def distinct_color(rank: int) -> tuple[int, ...]:
    """RGB 0..255; hues a golden angle apart never come close to their last few predecessors."""
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(0.618034 * rank % 1, 0.55 + 0.3 * (rank % 2), 0.9))
