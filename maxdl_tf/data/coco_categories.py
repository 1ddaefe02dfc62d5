"""Categories of COCO files: read and checked, and turned into a class table."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from typing import Any

from maxdl_tf.class_table import DatasetInfo, SourceClass, from_source_classes
from maxdl_tf.data import coco_fields
from maxdl_tf.errors import UserError


def read_categories(categories: Iterable[Any], source: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a list of categories.

    Args:
      categories: JSON values.
      source: Path of the file with the categories, for error messages.

    Returns:
      Dictionaries with id, name and, where the list has them, isthing and color.

    Raises:
      UserError: An entry is incomplete or invalid, or two have the same id.
    """
    rows = coco_fields.read_all(categories, coco_fields.CATEGORY, str(source))
    names: dict[int, str] = {}
    for row in rows:
        if row["id"] in names:
            raise UserError(
                f"{source}: two categories have the id {row['id']}, {names[row['id']]!r} and {row['name']!r}; give "
                "each its own id"
            )
        names[row["id"]] = row["name"]
    return rows


def table_of_categories(
    categories: Sequence[Any], source: str | os.PathLike, name: str, label_divisor: int = 256
) -> DatasetInfo:
    """Builds the class table of a category list.

    Args:
      categories: JSON values with id, name, isthing and, optionally, color.
      source: Path of the file with the categories, for error messages.
      name: Name of the data set.
      label_divisor: Label divisor of the table.

    Raises:
      UserError: The list is empty, or an entry is incomplete or invalid.
    """
    if not categories:
        raise UserError(f"{source} lists no categories; add them")
    rows = []
    for row in read_categories(categories, source):
        if "isthing" not in row:
            raise UserError(f"{source}: category {row['id']} has no 'isthing'; add 1 for things and 0 for stuff")
        rows.append(SourceClass(row["id"], row["name"], row["isthing"], row.get("color")))
    try:
        return from_source_classes(rows, name, label_divisor)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
