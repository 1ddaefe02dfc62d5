"""Which prediction belongs to which image of the truth, and whether the categories of both are the same."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from maxdl_tf.class_table import DatasetInfo
from maxdl_tf.data.coco_files import ImageEntry, Results
from maxdl_tf.errors import UserError, some


def prediction_of(
    entries: Sequence[ImageEntry], results: Results, path: str | os.PathLike
) -> tuple[dict[Any, Any], str | None]:
    """Finds the prediction of each image of the truth, by its image id and by its file name.

    The file names decide where the two disagree, because tools count images in their own order. maxdl-predict takes
    the numbers in the names as ids, or the names themselves.

    Returns:
      {image id of the truth: image id of its prediction}, and a warning if ids and names disagree.

    Raises:
      UserError: Ids and names disagree, and an image has no prediction of its name.
    """
    name_of = {entry.image_id: entry.file_name for entry in entries}
    same_id = {image_id: image_id for image_id in name_of if image_id in results.annotations}
    same_name = _same(name_of, results.file_names, _stem)
    if not same_name:  # "000000000139.png" in a submission may be 0139.jpg.
        same_number = _same(name_of, results.file_names, _number)
        same_name = same_number if len(same_number) == len(name_of) else {}
    disagreeing = [
        (image_id, other)
        for image_id, other in same_name.items()
        if image_id != other and (image_id in same_id or other in name_of)
    ]
    if not disagreeing:
        return {**same_name, **same_id}, None
    image_id, other = disagreeing[0]
    what = (
        f"{path}: image ids and file names disagree for {len(disagreeing)} images; {name_of[image_id]} is image "
        f"{image_id} in the annotations and image {other} in the predictions"
    )
    missing = [entry.file_name for entry in entries if entry.png_name is not None and entry.image_id not in same_name]
    if missing:
        raise UserError(
            f"{what}, and there is no prediction with the name of {some(missing)}; name their PNGs like the "
            "images, and give them the image ids of the annotations"
        )
    return same_name, f"{what}; the file names decide"


def _same(names: Mapping[Any, str], others: Mapping[Any, str], key: Callable[[str], Any]) -> dict[Any, Any]:
    """{image id: image id in `others`} of the images with the same key. A key that occurs twice decides nothing."""
    own, other = _by_key(names, key), _by_key(others, key)
    return {image_id: other[found] for found, image_id in own.items() if found in other}


def _by_key(names: Mapping[Any, str], key: Callable[[str], Any]) -> dict[Any, Any]:
    keys = {image_id: key(name) for image_id, name in names.items()}
    count = Counter(keys.values())
    return {found: image_id for image_id, found in keys.items() if found is not None and count[found] == 1}


def _stem(name: str) -> str:
    return os.path.splitext(os.path.basename(name))[0]


def _number(name: str) -> int | None:
    stem = _stem(name)
    return int(stem) if re.fullmatch(r"\d{1,18}", stem, re.ASCII) else None


def other_names(categories: Sequence[Mapping[str, Any]], info: DatasetInfo, path: str | os.PathLike) -> str | None:
    """A warning if categories of the predictions have other names than those with the same ids in the truth.

    Raises:
      UserError: One of these names belongs to another id in the truth.
    """
    true_names = {row.source_id: row.name for row in info.classes}
    others = [
        (f"{row['id']} is {row['name']!r}, in the annotations {true_names[row['id']]!r}", row["name"])
        for row in categories
        if true_names.get(row["id"], row["name"]) != row["name"]
    ]
    if not others:
        return None
    what = f"{path}: categories have other names than in the annotations: {some([text for text, _ in others])}"
    if any(name in true_names.values() for _, name in others):
        raise UserError(f"{what}; give the predictions the category ids of the annotations")
    return f"{what}; the ids decide"
