"""Statistics of a data set that maxdl-check-data reports."""

from __future__ import annotations

from typing import Any

import numpy as np

from maxdl_tf.data_gen.checks.findings import Split


def summarize(split: Split, num_slots: int) -> dict[str, Any]:
    """Computes the statistics of a split, for JSON and for tables.

    Returns:
      `images`: number of images without damaged records. `sizes`: smallest, median and largest height and width.
      `segments_per_image`: smallest, median, 95th percentile and largest number, the image with the most, and the
      number of images above `num_slots`. `void`: fraction of the pixels. `modes`: number of images per color mode.
      `crowds`: number of crowds. `classes`: a row per class, the most pixels first. `absent`: names of classes that
      never occur.
    """
    sizes = np.array([image.size for image in split.images if image.size] or [(0, 0)])
    annotated = [image for image in split.images if image.segments or image.void]
    counts = [image.num_objects for image in annotated]
    drawn = sum(segment.area for image in split.images for segment in image.segments)
    void = sum(image.void for image in split.images)
    modes: dict[str, int] = {}
    for image in split.images:
        if image.size:
            modes[image.mode] = modes.get(image.mode, 0) + 1
    classes = _class_rows(split, drawn)
    return {
        "split": split.name,
        "images": sum(image.source is not None for image in split.images),
        "sizes": {
            name: {"least": int(side.min()), "median": float(np.median(side)), "most": int(side.max())}
            for name, side in (("height", sizes[:, 0]), ("width", sizes[:, 1]))
        },
        "segments_per_image": {
            "least": min(counts, default=0),
            "median": float(np.median(counts)) if counts else 0.0,
            "percentile_95": float(np.percentile(counts, 95)) if counts else 0.0,
            "most": max(counts, default=0),
            "image_with_most": annotated[int(np.argmax(counts))].name if counts else None,
            "num_slots": num_slots,
            "images_above_num_slots": sum(count > num_slots for count in counts),
            "histogram": _histogram(counts),
        },
        "void": void / (drawn + void) if drawn + void else 0.0,
        "modes": modes,
        "crowds": sum(row["crowds"] for row in classes),
        "classes": classes,
        "absent": [row["name"] for row in classes if not row["segments"] and not row["crowds"]],
    }


def _class_rows(split: Split, drawn: int) -> list[dict[str, Any]]:
    rows = {
        category: {"id": category, "name": name, "is_thing": is_thing, "images": 0, "segments": 0, "crowds": 0}
        for category, (name, is_thing) in split.categories.items()
    }
    pixels = dict.fromkeys(rows, 0)
    for image in split.images:
        for category in {segment.category for segment in image.segments}:
            rows[category]["images"] += 1
        for segment in image.segments:
            rows[segment.category]["crowds" if segment.is_crowd else "segments"] += 1
            pixels[segment.category] += segment.area
    for category, row in rows.items():
        row.update(pixels=pixels[category], share=pixels[category] / drawn if drawn else 0.0)
    return sorted(rows.values(), key=lambda row: -row["pixels"])


def _histogram(counts: list[int]) -> dict[str, int]:
    """Number of images per number of segments, in at most 12 bins of width 1, 2, 5, 10, ..."""
    most = max(counts, default=0)
    width = next(width for width in (1, 2, 5, 10, 20, 50, 100, 200, 500, 10**9) if most // width < 12)
    bins = [0] * (most // width + 1)
    for count in counts:
        bins[count // width] += 1
    names = [f"{width * i}" if width == 1 else f"{width * i} to {width * i + width - 1}" for i in range(len(bins))]
    return dict(zip(names, bins))
